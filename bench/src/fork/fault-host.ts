// One side of the fault bench, on a lab host:
//   fault-host.ts source DIRECTORY ADDRESS PAGES    memory of a known pattern behind a memserver, until DIRECTORY/done exists
//   fault-host.ts target DIRECTORY PAGES            a memtap, and faults on it; prints {"remote":{...},"local":{...}}
// They meet in DIRECTORY, which holds the compiled probes of packages/replication.

import { execFile, spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { existsSync } from 'node:fs';
import { readFile, rename, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { promisify } from 'node:util';
import { MemserverProcess, MemtapProcess } from '@snowflock/replication';
import { z } from 'zod';

const run = promisify(execFile);
const SEED = '7';
const MEETING_TIMEOUT_MS = 60_000;

const Offer = z.object({ address: z.string(), port: z.number(), key: z.string(), presence: z.string() });

async function appears(path: string): Promise<void> {
  const deadline = performance.now() + MEETING_TIMEOUT_MS;
  while (!existsSync(path)) {
    if (performance.now() > deadline)
      throw new Error(`${path} did not appear within ${MEETING_TIMEOUT_MS} ms`);
    await sleep(20);
  }
}

async function source(directory: string, address: string, pages: number): Promise<void> {
  const key = randomBytes(32);
  await using memserver = await MemserverProcess.start({
    controlPath: join(directory, 'source.ctl'),
    leasePath: join(directory, 'lease'),
    listenAddress: address,
    logPath: join(directory, 'source.log'),
  });
  await memserver.configure({ key });
  const frozen = spawn(
    join(directory, 'frozen-source'),
    [memserver.leasePath, String(pages), SEED, 'dense'],
    {
      stdio: ['ignore', 'pipe', 'inherit'],
    },
  );
  const line = await new Promise<string>((resolve) =>
    frozen.stdout.once('data', (chunk: Buffer) => resolve(chunk.toString())),
  );
  const [pid = '', start = ''] = line.trim().split(' ');
  const { presence } = await memserver.freeze({
    pid: Number(pid),
    ramRanges: [{ start, length: pages * 4096 }],
  });
  const offer = {
    address,
    port: memserver.port,
    key: key.toString('hex'),
    presence: presence.toString('base64'),
  };
  await writeFile(join(directory, 'offer.new'), JSON.stringify(offer));
  await rename(join(directory, 'offer.new'), join(directory, 'offer'));
  await appears(join(directory, 'done'));
}

async function target(directory: string, pages: number): Promise<void> {
  try {
    await appears(join(directory, 'offer'));
    const offer = Offer.parse(JSON.parse(await readFile(join(directory, 'offer'), 'utf8')));
    await using memtap = await MemtapProcess.start({
      controlPath: join(directory, 'target.ctl'),
      mountPath: join(directory, 'mount'),
      ramBytes: pages * 4096,
      logPath: join(directory, 'target.log'),
    });
    await memtap.attach({
      sources: [{ address: offer.address, port: offer.port }],
      key: Buffer.from(offer.key, 'hex'),
      presence: Buffer.from(offer.presence, 'base64'),
    });
    await memtap.set({ minWindowPages: 0, maxWindowPages: 0 });
    const client = [memtap.ramPath, SEED, 'dense', 'rand', String(pages)];
    const remote = await run(join(directory, 'fault-client'), client);
    const local = await run(join(directory, 'fault-client'), client);
    console.log(`{"remote":${remote.stdout.trim()},"local":${local.stdout.trim()}}`);
  } finally {
    await writeFile(join(directory, 'done'), '');
  }
}

const [side, directory = '', ...rest] = process.argv.slice(2);
if (side === 'source') await source(directory, rest[0] ?? '', Number(rest[1]));
else await target(directory, Number(rest[0]));

// QEMU's template clone (x-ignore-shared) as a peer: the template is stopped for good and its device state saved once; a copy maps its RAM
// file privately, loads the device state, and has no identity of its own. Where the RAM file comes from is what differs:
//
//   same-host      it is the template's, in memory
//   cp             a copy of it, made first, as one does for another host
//   read-through   the template's through a FUSE file system that reads it when it is asked (bindfs, with the kernel's read-ahead of
//                  128 KiB), as over NFS

import { execFile, spawn } from 'node:child_process';
import { existsSync } from 'node:fs';
import { mkdir, readFile, rm, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { promisify } from 'node:util';
import {
  booting,
  answered,
  capabilities,
  goOn,
  inScratch,
  PARENT,
  migrationDone,
  ping,
  start,
  type PeerGuest,
} from './peer-vm.ts';
import type { CopySample } from './peers.ts';

const run = promisify(execFile);
const MOUNT_TIMEOUT_MS = 5_000;
const BLOCK_BYTES = 512;

export type TemplateSource = 'same-host' | 'cp' | 'read-through';

/** A way to the template's RAM file, for one copy. */
interface RamFile extends AsyncDisposable {
  readonly path: string;
  /** Of RAM sent so far. */
  sentBytes(): Promise<number>;
}

/** Each sample is one more copy, from its beginning to its answer; its RAM file is got ready within that time. */
export async function templateClones(
  guest: PeerGuest,
  { source, rounds }: { source: TemplateSource; rounds: number },
): Promise<CopySample[]> {
  return inScratch(guest, async (directory) => {
    const template = join(directory, 'template');
    await mkdir(template);
    const ramFile = join(template, 'ram');
    const state = join(directory, 'state');
    await using parent = await start(
      guest,
      { name: PARENT, directory },
      booting(guest, { kind: 'file', path: ramFile, share: true }),
    );
    await answered(parent);
    await guest.warm(parent);
    await parent.qemu.qmp.execute(capabilities(['x-ignore-shared']));
    await parent.qemu.qmp.execute({ execute: 'stop' });
    await migrationDone(parent, () =>
      parent.qemu.qmp.execute({ execute: 'migrate', arguments: { uri: `exec:cat > ${state}` } }),
    );
    const { size: stateBytes } = await stat(state);
    const samples: CopySample[] = [];
    for (let round = 0; round < rounds; round++) {
      const copying = performance.now();
      await using ram = await open(source, ramFile, join(directory, `ram${round}`));
      const readyMs = performance.now() - copying;
      // waits for its state, as our clones wait for their descriptor: not part of the time
      await using copy = await start(
        guest,
        { name: `copy${round}`, directory },
        { origin: { kind: 'incoming' }, ram: { kind: 'file', path: ram.path, share: false } },
      );
      await copy.qemu.qmp.execute(capabilities(['x-ignore-shared']));
      const begin = performance.now();
      await migrationDone(copy, () =>
        copy.qemu.qmp.execute({ execute: 'migrate-incoming', arguments: { uri: `exec:cat ${state}` } }),
      );
      await goOn(copy);
      await ping(copy, 100 + round);
      const ms = readyMs + performance.now() - begin;
      samples.push({ ms, bytes: stateBytes + (await ram.sentBytes()) });
    }
    return samples;
  });
}

async function open(source: TemplateSource, ramFile: string, place: string): Promise<RamFile> {
  switch (source) {
    case 'same-host':
      return { path: ramFile, sentBytes: async () => 0, [Symbol.asyncDispose]: async () => undefined };
    case 'cp':
      await run('cp', ['--sparse=auto', ramFile, place]);
      return {
        path: place,
        sentBytes: async () => (await stat(place)).blocks * BLOCK_BYTES,
        [Symbol.asyncDispose]: () => rm(place),
      };
    case 'read-through':
      return readThrough(ramFile, place);
    default:
      return source satisfies never;
  }
}

/** Whether this machine has what the read-through needs. */
export async function hasReadThrough(): Promise<boolean> {
  return run('bindfs', ['--version']).then(
    () => true,
    () => false,
  );
}

async function readThrough(ramFile: string, place: string): Promise<RamFile> {
  await mkdir(place);
  const bindfs = spawn('bindfs', ['-f', join(ramFile, '..'), place], {
    stdio: ['ignore', 'ignore', 'inherit'],
  });
  const ended = new Promise<void>((resolve) => bindfs.once('close', () => resolve()));
  const close = async (): Promise<void> => {
    await run('umount', ['-l', place]).catch(() => undefined); // it may not have been mounted
    bindfs.kill();
    await ended;
    await rm(place, { recursive: true, force: true });
  };
  const path = join(place, 'ram');
  const end = performance.now() + MOUNT_TIMEOUT_MS;
  while (!existsSync(path)) {
    if (performance.now() > end || bindfs.exitCode !== null) {
      await close();
      throw new Error(`bindfs did not mount ${place}`);
    }
    await sleep(5);
  }
  const readBytes = async (): Promise<number> => {
    const io = await readFile(`/proc/${bindfs.pid ?? 0}/io`, 'utf8');
    return Number(/^rchar: (\d+)$/m.exec(io)?.[1]);
  };
  const before = await readBytes();
  return { path, sentBytes: async () => (await readBytes()) - before, [Symbol.asyncDispose]: close };
}

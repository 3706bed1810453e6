// npm run bench -- distribution: clones on as many hosts all read the memory that their parent wrote, by unicast and by multicast, over
// links as fast as they go and of 100 Mbit/s. What leaves the parent is counted, not timed; the times are those of a machine
// on which all hosts share the CPUs.

import { setTimeout as sleep } from 'node:timers/promises';
import { Lab, type LabNetworkMode } from '@snowflock/lab';
import { CloneRecord, NoReply, SeedReply } from '@snowflock/protocol';
import { connectExec, startExec } from '@snowflock/sdk';
import { chooseAccel } from '@snowflock/vm';
import { PassThrough, Writable } from 'node:stream';
import { z } from 'zod';
import { figure, machine, type BenchResult, type Figure } from '../figures.ts';
import { GuestProgram } from '../fork/guest-program.ts';

interface Case {
  readonly networkMode: LabNetworkMode;
  readonly hosts: number;
  readonly rateMbit?: number;
}

const SHAPE = { diskImage: 'micro', vcpus: 1, memoryMib: 112 };
const AREA_MIB = 16;
const LAB_CPUS = 8;
const LAB_RAM_BYTES = 2 * 2 ** 30;
const REQUEST_TIMEOUT_MS = 120_000;
const JOB_TIMEOUT_MS = 180_000;
/** Each look costs the clones CPU time. */
const POLL_MS = 250;

/** What is read here of a memtap's figures. */
const Tap = z.object({
  wireBytesReceived: z.number(),
  missLatency: z.object({ sumUs: z.number() }),
  multicast: z.object({ bytes: z.number(), missedPages: z.number() }).nullable(),
});

interface Sample {
  readonly parentBytes: number;
  readonly jobMs: number;
  readonly stallMs: number;
}

export async function benchDistribution(options: {
  quick: boolean;
  signal: AbortSignal;
}): Promise<BenchResult> {
  const { quick, signal } = options;
  const figures: Figure[] = [];
  for (const hosts of quick ? [2] : [1, 2, 4])
    for (const rateMbit of quick ? [undefined] : [undefined, 100])
      for (const networkMode of ['unicast', 'multicast'] as const) {
        const one = { networkMode, hosts, ...(rateMbit === undefined ? {} : { rateMbit }) };
        const samples = await samplesOf(one, { rounds: quick ? 1 : 3, signal });
        figures.push(...figuresOf(one, samples));
      }
  return { bench: 'distribution', machine: machine((await chooseAccel('auto')).chosen), figures };
}

async function samplesOf(
  { networkMode, hosts, rateMbit }: Case,
  { rounds, signal }: { rounds: number; signal: AbortSignal },
): Promise<Sample[]> {
  const size = { hosts, cpus: LAB_CPUS, ramBytes: LAB_RAM_BYTES };
  await using lab = await Lab.up({ name: 'bench', ...size, networkMode, signal });
  const client = lab.client(1);
  const { clusterid } = await client.request({
    ...{ method: 'POST', path: '/v1/master/clusters', body: SHAPE },
    ...{ reply: SeedReply, timeoutMs: REQUEST_TIMEOUT_MS },
  });
  await using stack = new AsyncDisposableStack();
  stack.defer(() =>
    client.request({
      ...{ method: 'DELETE', path: `/v1/master/clusters/${clusterid}?force=1` },
      ...{ reply: NoReply, timeoutMs: REQUEST_TIMEOUT_MS },
    }),
  );
  const argv = ['/usr/lib/snowflock/sfmemtest', String(AREA_MIB), '77'];
  const program = stack.use(await GuestProgram.start(client, `${clusterid}:0`, argv));
  if ((await program.ask(null)) !== 'filled') throw new Error('the guest did not fill its memory');
  if (rateMbit !== undefined) for (const { k } of lab.hosts) await lab.shapeLink(k, { rateMbit });
  const samples: Sample[] = [];
  for (let round = 0; round < rounds; round++) {
    signal.throwIfAborted();
    samples.push(await sample(lab, program, hosts));
  }
  return samples;
}

/** One fork with a clone on each host, until all have read and rewritten their memory. */
async function sample(lab: Lab, program: GuestProgram, clones: number): Promise<Sample> {
  const startMs = performance.now();
  const answer = await program.ask(`clone ${clones}`);
  const ticket = /^master wrong=0 ticket=(\S+)/.exec(answer)?.[1];
  if (ticket === undefined) throw new Error(`fork: ${answer}`);
  const records = await clonesOf(lab, ticket);
  await Promise.all(records.map((record) => finished(lab, record)));
  const jobMs = performance.now() - startMs;
  const taps = (await clonesOf(lab, ticket)).map(({ replication }) => Tap.parse(replication));
  const unicastBytes = taps.reduce((sum, tap) => sum + tap.wireBytesReceived, 0);
  // one sending reaches all of them; who lost nothing has counted it
  const multicastBytes = Math.max(...taps.map(({ multicast }) => multicast?.bytes ?? 0));
  const stallMs = taps.reduce((sum, { missLatency }) => sum + missLatency.sumUs / 1000, 0) / clones;
  if (!(await program.ask(`merge ${ticket}`)).startsWith('merged')) throw new Error('merge failed');
  return { parentBytes: unicastBytes + multicastBytes, jobMs, stallMs };
}

async function clonesOf(lab: Lab, ticket: string): Promise<CloneRecord[]> {
  const path = `/v1/clones?ticket=${ticket}`;
  const asked = lab.hosts.map(({ k }) =>
    lab.client(k).request({
      ...{ method: 'GET', path, reply: z.array(CloneRecord), timeoutMs: REQUEST_TIMEOUT_MS },
    }),
  );
  return (await Promise.all(asked)).flat();
}

/** Until the clone has said that no byte was wrong. */
async function finished(lab: Lab, { clusterid, vmid }: CloneRecord): Promise<void> {
  const end = performance.now() + JOB_TIMEOUT_MS;
  while (performance.now() < end) {
    const said = await contents(lab, `${clusterid}:${vmid}`, `/run/sfmemtest.${vmid}`);
    if (said.includes(' wrong=0 ')) return;
    if (said !== '') throw new Error(`clone ${vmid}: ${said}`);
    await sleep(POLL_MS);
  }
  throw new Error(`clone ${vmid} did not finish within ${JOB_TIMEOUT_MS} ms`);
}

async function contents(lab: Lab, vm: string, path: string): Promise<string> {
  let text = '';
  const stdout = new Writable({
    write: (chunk: Buffer, _encoding, done) => {
      text += chunk.toString();
      done();
    },
  });
  const stdin = new PassThrough();
  stdin.end();
  const command = `cat ${path} 2>/dev/null || true`;
  const connection = await connectExec(lab.client(1), vm);
  await startExec(connection, { argv: ['sh', '-c', command], stdin, stdout, stderr: process.stderr }).exited;
  return text;
}

function figuresOf({ networkMode, hosts, rateMbit }: Case, samples: readonly Sample[]): Figure[] {
  const link = rateMbit === undefined ? '' : `, ${rateMbit} Mbit/s`;
  const name = `${networkMode}, ${hosts} ${hosts === 1 ? 'host' : 'hosts'}${link}`;
  const of = (what: string, unit: Figure['unit'], value: (one: Sample) => number): Figure =>
    figure({ name: what, case: name, unit, samples: samples.map(value) });
  return [
    of('bytes-leaving-parent', 'bytes', ({ parentBytes }) => parentBytes),
    of('bytes-leaving-parent / area', 'ratio', ({ parentBytes }) => parentBytes / (AREA_MIB * 2 ** 20)),
    of('job', 'ms', ({ jobMs }) => jobMs),
    of('stall of a host', 'ms', ({ stallMs }) => stallMs),
  ];
}

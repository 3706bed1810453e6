// SnowFlock's side of the distribution bench: 1 to 32 clones over the hosts of a lab all read the memory that their parent wrote.

import { Lab, type LabNetworkMode } from '@snowflock/lab';
import type { CloneRecord } from '@snowflock/protocol';
import { memtapStatsSchema, type MemtapStats } from '@snowflock/replication';
import { z } from 'zod';
import { figure, type Figure } from '../figures.ts';
import { BenchMaster } from '../fork/master.ts';
import { measureTouched, type Touched } from './touched.ts';

/** A way to send pages; each is measured in a lab of its own. */
interface Variant {
  readonly name: string;
  readonly networkMode: LabNetworkMode;
  /** Lines of sfmd's configuration. */
  readonly sfmdOptions?: readonly string[];
}
export const VARIANTS: readonly Variant[] = [
  { name: 'unicast', networkMode: 'unicast' },
  { name: 'relay', networkMode: 'relay' },
  { name: 'multicast', networkMode: 'multicast' },
];

interface Link {
  readonly name: string;
  /** Of every host's cable. */
  readonly rateMbit?: number;
}
export const LINKS: readonly Link[] = [
  { name: 'unlimited' },
  { name: '1 Gbit', rateMbit: 1000 },
  { name: '100 Mbit', rateMbit: 100 },
];

export const HOSTS = 8;
const CLONES = [1, 2, 4, 8, 16, 32];
const QUICK_CLONES = [2, 8];
const AREA_MIB = 16;
const SHAPE = { image: 'micro', memoryMib: 112, areaMib: AREA_MIB };
const LAB_CPUS = 16;
const LAB_RAM_BYTES = 4 * 2 ** 30;
const STATS_TIMEOUT_MS = 15_000;
const ROUNDS = 2;
/** Above it one round must do: under emulation a fork into 32 that all read takes up to a minute. */
const ROUNDS_CLONES_MAX = 8;

interface Sample {
  /** Sent by the memserver: everything over lanes, and once what went to all. */
  readonly parentBytes: number;
  /** That left the cable of the parent's host, from the ticket to the last answer. */
  readonly cableBytes: number;
  /** Got by each host. */
  readonly hostBytes: readonly number[];
  readonly jobMs: number;
  readonly stallMs: number;
}

interface CasesOptions {
  readonly quick: boolean;
  /** Of a variant, a link and a number of clones, as in 'unicast/100 Mbit/8 clones'. */
  readonly wanted: (name: string) => boolean;
  readonly signal: AbortSignal;
}

export async function measureCases({ quick, wanted, signal }: CasesOptions): Promise<Figure[]> {
  const counts = quick ? QUICK_CLONES : CLONES;
  const plan = VARIANTS.flatMap((variant) =>
    (quick ? LINKS.slice(0, 1) : LINKS).flatMap((link) =>
      counts
        .filter((clones) => wanted(`${variant.name}/${link.name}/${clonesText(clones)}`))
        .map((clones) => ({ variant, link, clones })),
    ),
  );
  if (plan.length === 0) return [];
  const hosts = { name: 'bench', hosts: HOSTS, cpus: LAB_CPUS, ramBytes: LAB_RAM_BYTES, signal };
  const touched = new Map<number, Touched>();
  {
    await using lab = await Lab.up({ ...hosts, networkMode: 'unicast' });
    for (const clones of new Set(plan.map((one) => one.clones))) {
      signal.throwIfAborted();
      touched.set(clones, await measureTouched(lab, SHAPE, clones));
    }
  }
  const figures = [...touched].flatMap(([clones, pages]) => touchedFigures(clones, pages));
  for (const variant of VARIANTS) {
    const cases = plan.filter((one) => one.variant === variant);
    if (cases.length === 0) continue;
    const { networkMode, sfmdOptions } = variant;
    await using lab = await Lab.up({ ...hosts, networkMode, sfmdOptions });
    for (const { link, clones } of cases) {
      signal.throwIfAborted();
      for (const { k } of lab.hosts)
        await lab.shapeLink(k, link.rateMbit === undefined ? {} : { rateMbit: link.rateMbit });
      const rounds = quick || clones > ROUNDS_CLONES_MAX ? 1 : ROUNDS;
      const samples = await samplesOf(lab, clones, { rounds, signal });
      const pages = touched.get(clones);
      if (pages) figures.push(...figuresOf(caseName(variant, link, clones), samples, pages));
    }
  }
  return figures;
}

export function caseName(variant: { name: string }, link: { name: string }, clones: number): string {
  return `${variant.name}, ${link.name}, ${clonesText(clones)}`;
}

function clonesText(clones: number): string {
  return `${clones} ${clones === 1 ? 'clone' : 'clones'}`;
}

async function samplesOf(
  lab: Lab,
  clones: number,
  { rounds, signal }: { rounds: number; signal: AbortSignal },
): Promise<Sample[]> {
  await using master = await BenchMaster.seed(lab, SHAPE);
  const samples: Sample[] = [];
  // the first fork of a VM finds nothing learnt yet
  for (let round = 0; round <= rounds; round++) {
    signal.throwIfAborted();
    const taken = await sample(lab, master, clones);
    if (round > 0) samples.push(taken);
  }
  return samples;
}

async function sample(lab: Lab, master: BenchMaster, count: number): Promise<Sample> {
  let cableBefore = 0;
  let servedBefore = 0;
  const { ticket, record, clones } = await master.fork(count, {
    prepared: async (prepared) => {
      cableBefore = await sentBytes(lab, master.host);
      servedBefore = await servedBytes(lab, master.host, prepared);
    },
  });
  const parentBytes = (await servedBytes(lab, master.host, ticket)) - servedBefore;
  const cableBytes = (await sentBytes(lab, master.host)) - cableBefore;
  const taps = memtapsOf(clones);
  await master.merge(ticket);
  const sum = (of: (tap: MemtapStats) => number): number => taps.reduce((total, tap) => total + of(tap), 0);
  return {
    parentBytes,
    cableBytes,
    hostBytes: taps.map((tap) => tap.wireBytesReceived + (tap.multicast?.bytes ?? 0)),
    jobMs: Math.max(...clones.map((clone) => clone.firstAnswerAtMs ?? Number.NaN)) - record.calledAtMs,
    stallMs: sum(({ missLatency }) => missLatency.sumUs / 1000) / count,
  };
}

/** One for each host: its clones share it, and each of their records has a copy that was taken at the same time. */
function memtapsOf(clones: readonly CloneRecord[]): MemtapStats[] {
  const distinct = new Map(clones.map(({ replication }) => [JSON.stringify(replication), replication]));
  return [...distinct.values()].map((replication) => memtapStatsSchema.parse(replication));
}

export function memtapOf({ replication }: CloneRecord): MemtapStats {
  return memtapStatsSchema.parse(replication);
}

const Served = z.object({
  sentBytes: z.number(),
  multicast: z.object({ multicastBytes: z.number() }).nullable(),
});

/** By the memserver of a ticket, so far: over lanes, and once what went to all. */
async function servedBytes(lab: Lab, host: string, ticket: string): Promise<number> {
  const k = lab.hosts.find(({ name }) => name === host)?.k ?? 1;
  const asked = { method: 'GET', path: `/v1/sources/${ticket}`, reply: Served } as const;
  const { sentBytes: bytes, multicast } = await lab
    .client(k)
    .request({ ...asked, timeoutMs: STATS_TIMEOUT_MS });
  return bytes + (multicast?.multicastBytes ?? 0);
}

const Links = z.array(z.object({ stats64: z.object({ tx: z.object({ bytes: z.number() }) }) })).min(1);

/** By a host, so far. */
async function sentBytes(lab: Lab, host: string): Promise<number> {
  const k = lab.hosts.find(({ name }) => name === host)?.k ?? 1;
  const { stdout } = await lab.exec(k, ['ip', '-j', '-s', 'link', 'show', 'dev', 'eth0']);
  return Links.parse(JSON.parse(stdout.toString()))[0]?.stats64.tx.bytes ?? Number.NaN;
}

function touchedFigures(clones: number, { unionBytes, hostBytes }: Touched): Figure[] {
  const name = clonesText(clones);
  return [
    figure({ name: 'touched-union', case: name, unit: 'bytes', samples: [unionBytes] }),
    figure({ name: 'touched-host', case: name, unit: 'bytes', samples: [hostBytes] }),
  ];
}

function figuresOf(name: string, samples: readonly Sample[], touched: Touched): Figure[] {
  const of = (what: string, unit: Figure['unit'], value: (one: Sample) => number): Figure =>
    figure({ name: what, case: name, unit, samples: samples.map(value) });
  const hosts = samples.flatMap(({ hostBytes }) => hostBytes);
  return [
    of('bytes-leaving-parent', 'bytes', ({ parentBytes }) => parentBytes),
    of('bytes-leaving-parent / touched-union', 'ratio', (one) => one.parentBytes / touched.unionBytes),
    of('bytes-on-cable', 'bytes', ({ cableBytes }) => cableBytes),
    figure({ name: 'bytes-to-host', case: name, unit: 'bytes', samples: hosts }),
    figure({
      ...{ name: 'bytes-to-host / touched-host', case: name, unit: 'ratio' },
      samples: hosts.map((bytes) => bytes / touched.hostBytes),
    }),
    of('job', 'ms', ({ jobMs }) => jobMs),
    of('stall-of-clone', 'ms', ({ stallMs }) => stallMs),
  ];
}

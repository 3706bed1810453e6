// SnowFlock's side of the distribution bench: 1 to 32 clones over the hosts of a lab all read the memory that their parent wrote.

import { Lab, type LabNetworkMode } from '@snowflock/lab';
import type { CloneRecord } from '@snowflock/protocol';
import type { MemtapStats } from '@snowflock/replication';
import { figure, type Figure } from '../figures.ts';
import { BenchMaster, type MasterShape } from '../fork/master.ts';
import { accountOfClones, memtapsOf } from './account.ts';
import { cableBytes, servedBytes } from './sent-bytes.ts';
import { measureTouched, type Touched } from './touched.ts';

/** A way to send pages; each is measured in a lab of its own. */
export interface Variant {
  readonly name: string;
  readonly networkMode: LabNetworkMode;
  /** Lines of sfmd's configuration. */
  readonly sfmdOptions?: readonly string[];
  /** False: what the guest frees counts as in use. */
  readonly freePageReporting?: false;
  /** Links and numbers of clones that are measured; absent: all. */
  readonly measured?: { readonly links: readonly string[]; readonly clones: readonly number[] };
}
const SOME_CLONES = [2, 8];
/** The first is what the others are compared with. */
export const VARIANTS: readonly Variant[] = [
  { name: 'unicast', networkMode: 'unicast' },
  { name: 'relay', networkMode: 'relay' },
  { name: 'multicast', networkMode: 'multicast' },
  {
    ...{ name: 'unicast without push', networkMode: 'unicast', sfmdOptions: ["push_pages = 'never'"] },
    measured: { links: ['unlimited', '1 Gbit', '100 Mbit'], clones: SOME_CLONES },
  },
  {
    ...{ name: 'unicast without compression', networkMode: 'unicast' },
    sfmdOptions: ["compress_pages = 'never'"],
    // over faster ones nothing is compressed
    measured: { links: ['100 Mbit'], clones: SOME_CLONES },
  },
  {
    ...{ name: 'unicast without avoidance', networkMode: 'unicast', freePageReporting: false },
    measured: { links: ['unlimited', '100 Mbit'], clones: SOME_CLONES },
  },
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
  readonly clones: readonly CloneRecord[];
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
        .filter((clones) => isMeasured(variant, link, clones))
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
    const { networkMode, sfmdOptions, freePageReporting } = variant;
    const shape = { ...SHAPE, freePageReporting };
    await using lab = await Lab.up({ ...hosts, networkMode, sfmdOptions });
    for (const { link, clones } of cases) {
      signal.throwIfAborted();
      for (const { k } of lab.hosts)
        await lab.shapeLink(k, link.rateMbit === undefined ? {} : { rateMbit: link.rateMbit });
      const rounds = quick || clones > ROUNDS_CLONES_MAX ? 1 : ROUNDS;
      const samples = await samplesOf(lab, shape, { clones, rounds, signal });
      const pages = touched.get(clones);
      if (pages) figures.push(...figuresOf(caseName(variant, link, clones), samples, pages));
    }
  }
  return figures;
}

function isMeasured({ measured }: Variant, link: Link, clones: number): boolean {
  return measured === undefined || (measured.links.includes(link.name) && measured.clones.includes(clones));
}

export function caseName(variant: { name: string }, link: { name: string }, clones: number): string {
  return `${variant.name}, ${link.name}, ${clonesText(clones)}`;
}

function clonesText(clones: number): string {
  return `${clones} ${clones === 1 ? 'clone' : 'clones'}`;
}

async function samplesOf(
  lab: Lab,
  shape: MasterShape,
  { clones, rounds, signal }: { clones: number; rounds: number; signal: AbortSignal },
): Promise<Sample[]> {
  await using master = await BenchMaster.seed(lab, shape);
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
      cableBefore = await cableBytes(lab, master.host);
      servedBefore = await servedBytes(lab, master.host, prepared);
    },
  });
  const parentBytes = (await servedBytes(lab, master.host, ticket)) - servedBefore;
  const sentBytes = (await cableBytes(lab, master.host)) - cableBefore;
  const taps = memtapsOf(clones);
  await master.merge(ticket);
  const sum = (of: (tap: MemtapStats) => number): number => taps.reduce((total, tap) => total + of(tap), 0);
  return {
    parentBytes,
    cableBytes: sentBytes,
    hostBytes: taps.map((tap) => tap.wireBytesReceived + (tap.multicast?.bytes ?? 0)),
    jobMs: Math.max(...clones.map((clone) => clone.firstAnswerAtMs ?? Number.NaN)) - record.calledAtMs,
    stallMs: sum(({ missLatency }) => missLatency.sumUs / 1000) / count,
    clones,
  };
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
    ...accountOfClones(
      name,
      samples.map(({ clones }) => clones),
    ),
  ];
}

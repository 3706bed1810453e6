// The same guest with 1 GiB of memory, copied or moved to one other place: by SnowFlock, and by what one did before. State that is sent, and
// time until the guest's agent (ours: the guest's own program) answers there.

import { mkdtemp, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { buildImage } from '@snowflock/image';
import { Lab } from '@snowflock/lab';
import type { Accel } from '@snowflock/vm';
import { figure, type Figure } from '../figures.ts';
import { liveMigration } from '../fork/live-migration.ts';
import { BenchMaster } from '../fork/master.ts';
import { fill, type PeerGuest, type PeerVm } from '../fork/peer-vm.ts';
import { suspendCopyResume, type CopySample } from '../fork/peers.ts';
import { hasReadThrough, templateClones } from '../fork/template-clone.ts';
import { ratioOf } from './ratios.ts';
import { memtapOf } from './account.ts';

interface Guest {
  readonly name: string;
  readonly memoryMib: number;
  /** Filled by a program in it. */
  readonly touchedMib: number;
}
const GUEST: Guest = { name: '1 GiB', memoryMib: 1024, touchedMib: 768 };
const QUICK_GUEST: Guest = { name: '256 MiB', memoryMib: 256, touchedMib: 160 };
/** What a clone reads of it in the second of our figures. */
const JOB_MIB = 16;
const LAB_RAM_BYTES = 4 * 2 ** 30;
const FORK_SHIM = join(import.meta.dirname, '../../../build/native/forkshim.so');
/** Files of the peers are in memory: no disk stands in their way. */
const SCRATCH_PARENT = '/dev/shm';

type Peer = (guest: PeerGuest, rounds: number) => Promise<CopySample[]>;
const PEERS: Readonly<Record<string, Peer>> = {
  'suspend-copy-resume': suspendCopyResume,
  'pre-copy': (guest, rounds) => liveMigration(guest, { kind: 'pre-copy', rounds }),
  'post-copy': (guest, rounds) => liveMigration(guest, { kind: 'post-copy', rounds }),
  'template-cp': (guest, rounds) => templateClones(guest, { source: 'cp', rounds }),
  'template-read-through': (guest, rounds) => templateClones(guest, { source: 'read-through', rounds }),
};

interface PeersOptions {
  readonly quick: boolean;
  readonly accel: Accel;
  readonly wanted: (name: string) => boolean;
  readonly signal: AbortSignal;
}

export async function measurePeers({ quick, accel, wanted, signal }: PeersOptions): Promise<Figure[]> {
  const size = quick ? QUICK_GUEST : GUEST;
  const rounds = quick ? 1 : 3;
  const peers = Object.entries(PEERS).filter(([name]) => wanted(name));
  if (peers.length === 0) return [];
  const figures = await ourFigures(size, { rounds, signal });
  const image = await buildImage('micro', { signal });
  const scratch = await mkdtemp(join(SCRATCH_PARENT, 'sf-bench-'));
  const { memoryMib, touchedMib } = size;
  const warm = (vm: PeerVm): Promise<void> => fill(vm, touchedMib);
  const guest = { memoryMib, warm, accel, image, forkShim: FORK_SHIM, scratch };
  try {
    for (const [name, measure] of peers) {
      signal.throwIfAborted();
      if (name === 'template-read-through' && !(await hasReadThrough())) {
        console.error(
          'distribution: no template-read-through, since there is no bindfs (apt-get install bindfs)',
        );
        continue;
      }
      figures.push(...peerFigures(`${name}, ${size.name}`, await measure(guest, rounds)));
    }
  } finally {
    await rm(scratch, { recursive: true, force: true });
  }
  return [...figures, ...ratios(figures, size)];
}

function peerFigures(name: string, samples: readonly CopySample[]): Figure[] {
  return [
    figure({ name: 'state-sent', case: name, unit: 'bytes', samples: samples.map(({ bytes }) => bytes) }),
    figure({ name: 'answer', case: name, unit: 'ms', samples: samples.map(({ ms }) => ms) }),
  ];
}

/** A clone on another host that answers at once; and one that reads JOB_MIB of its parent's memory before. */
async function ourFigures(
  size: Guest,
  { rounds, signal }: { rounds: number; signal: AbortSignal },
): Promise<Figure[]> {
  const { memoryMib, touchedMib } = size;
  // a host has room for one VM, so that the clone is on the other one
  await using lab = await Lab.up({ name: 'bench', hosts: 2, cpus: 1, ramBytes: LAB_RAM_BYTES, signal });
  const figures: Figure[] = [];
  for (const [name, areaMib] of [
    ['snowflock', undefined],
    [`snowflock, ${JOB_MIB} MiB read`, JOB_MIB],
  ] as const) {
    await using master = await BenchMaster.seed(lab, {
      image: 'micro',
      memoryMib,
      touchedMib: touchedMib - (areaMib ?? 0),
      areaMib,
    });
    const samples: CopySample[] = [];
    // the first fork of a VM finds nothing learnt yet
    for (let round = 0; round <= rounds; round++) {
      const { ticket, record, clones } = await master.fork(1);
      const [clone] = clones;
      if (!clone) throw new Error('the fork made no clone');
      await master.merge(ticket);
      if (round > 0)
        samples.push({
          ms: (clone.firstAnswerAtMs ?? Number.NaN) - record.calledAtMs,
          bytes: record.descriptorBytes + memtapOf(clone).wireBytesReceived,
        });
    }
    figures.push(...peerFigures(`${name}, ${size.name}`, samples));
  }
  return figures;
}

/** Each peer against both of ours. */
function ratios(figures: readonly Figure[], size: Guest): Figure[] {
  const cases = new Set(figures.map((one) => one.case));
  const ours = [...cases].filter((name) => name.startsWith('snowflock'));
  const found: (Figure | undefined)[] = [];
  for (const peer of Object.keys(PEERS))
    for (const our of ours)
      for (const name of ['state-sent', 'answer'])
        found.push(ratioOf(figures, name, `${peer}, ${size.name}`, our));
  return found.filter((one) => one !== undefined);
}

// What the demo found, for people and for machines.

import type { CloneRecord, ForkRecord } from '@snowflock/protocol';
import { formatBytes, formatTable } from '@snowflock/cli';

export const HOSTS = 2;
export const CLONES = 4;

/** The last line of `npm run demo -- --json`. */
export interface DemoResult {
  readonly ok: boolean;
  readonly clones: number;
  readonly hosts: number;
  readonly identical: boolean;
  readonly parentPauseMs: number;
  /** From the call in the guest to the clone running with its own identity, per clone. */
  readonly forkToRunningMs: readonly number[];
  readonly ramBytes: number;
  /** Bytes of memory and disk that came over the network for each clone. */
  readonly fetchedBytes: readonly number[];
  readonly serialSeconds: number;
  readonly clonedSeconds: number;
}

export interface DemoFindings {
  readonly fork: ForkRecord;
  readonly clones: readonly (CloneRecord & { host: string })[];
  readonly queries: number;
  readonly hits: number;
  readonly identical: boolean;
  readonly serialSeconds: number;
  readonly clonedSeconds: number;
}

const round = (value: number): number => Math.round(value * 10) / 10;
const since = (fork: ForkRecord, atMs: number | null): number =>
  atMs === null ? Number.NaN : round(atMs - fork.calledAtMs);

export function toResult(found: DemoFindings): DemoResult {
  const { fork, clones } = found;
  return {
    ok: found.identical && clones.length === CLONES && found.hits > 0,
    clones: clones.length,
    hosts: new Set(clones.map((clone) => clone.host)).size,
    identical: found.identical,
    parentPauseMs: round(fork.pauseMs),
    forkToRunningMs: clones.map((clone) => since(fork, clone.identifiedAtMs)),
    ramBytes: fork.ramBytes,
    fetchedBytes: clones.map((clone) => clone.fetchedBytes ?? 0),
    serialSeconds: round(found.serialSeconds),
    clonedSeconds: round(found.clonedSeconds),
  };
}

export function describeResult(found: DemoFindings): string {
  const { fork } = found;
  const rows = found.clones.map((clone) => [
    `${clone.clusterid}:${clone.vmid}`,
    clone.host,
    `${since(fork, clone.identifiedAtMs)} ms`,
    `${since(fork, clone.firstAnswerAtMs)} ms`,
    String(Math.round((clone.fetchedBytes ?? 0) / 4096)),
    formatBytes(clone.fetchedBytes ?? 0),
    `${round((100 * (clone.fetchedBytes ?? 0)) / fork.ramBytes)} %`,
  ]);
  const table = formatTable(
    [
      { title: 'clone' },
      { title: 'host' },
      { title: 'running after', align: 'right' },
      { title: 'first answer after', align: 'right' },
      { title: 'pages fetched', align: 'right' },
      { title: 'bytes fetched', align: 'right' },
      { title: 'of the VM', align: 'right' },
    ],
    rows,
  );
  const speedup = round(found.serialSeconds / found.clonedSeconds);
  return [
    '',
    `The master VM (${formatBytes(fork.ramBytes)} of memory) was paused for ${round(fork.pauseMs)} ms.`,
    `Its descriptor was ${formatBytes(fork.descriptorBytes)}; ${formatBytes(fork.presentPages * 4096)} of its memory were in use.`,
    '',
    ...table,
    '',
    `${found.queries} proteins searched: ${round(found.serialSeconds)} s in one VM, ${round(found.clonedSeconds)} s over ` +
      `${found.clones.length} clones (${speedup} times as fast on this machine's CPUs).`,
    found.identical
      ? `Both results are identical: ${found.hits} hits.`
      : 'THE RESULTS DIFFER. This is a bug of SnowFlock; please report it.',
    '',
  ].join('\n');
}

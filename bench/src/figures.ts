// What every bench prints: one JSON object as its last line, of figures with their spread.

import { cpus, release, totalmem } from 'node:os';
import { execFileSync } from 'node:child_process';

export interface Figure {
  readonly name: string;
  readonly case: string;
  readonly unit: 'ms' | 'us' | 'bytes' | 'ratio' | 'count';
  readonly n: number;
  readonly min: number;
  readonly median: number;
  readonly p99: number;
  readonly max: number;
}

/** Nearest-rank percentile of sorted samples. */
function rank(sorted: readonly number[], share: number): number {
  return sorted[Math.min(sorted.length - 1, Math.max(0, Math.ceil(share * sorted.length) - 1))] ?? Number.NaN;
}

export function figure(of: {
  name: string;
  case: string;
  unit: Figure['unit'];
  samples: readonly number[];
}): Figure {
  const sorted = [...of.samples].sort((a, b) => a - b);
  const round = (value: number): number => Number(value.toPrecision(6));
  return {
    name: of.name,
    case: of.case,
    unit: of.unit,
    n: sorted.length,
    min: round(rank(sorted, 0)),
    median: round(rank(sorted, 0.5)),
    p99: round(rank(sorted, 0.99)),
    max: round(rank(sorted, 1)),
  };
}

export interface BenchResult {
  readonly bench: string;
  readonly machine: Record<string, string | number>;
  readonly figures: readonly Figure[];
}

export function machine(accel: string): Record<string, string | number> {
  const qemu = execFileSync('qemu-system-x86_64', ['--version'], { encoding: 'utf8' }).split('\n')[0] ?? '';
  return {
    cpu: cpus()[0]?.model ?? 'unknown',
    cpus: cpus().length,
    memoryBytes: totalmem(),
    kernel: release(),
    qemu: /version (\S+)/.exec(qemu)?.[1] ?? qemu,
    node: process.version,
    accel,
  };
}

/** For people; the JSON line is for machines. */
export function printTable(figures: readonly Figure[]): void {
  const rows = figures.map((f) => [f.name, f.case, f.unit, f.n, f.min, f.median, f.p99, f.max].map(String));
  const all = [['figure', 'case', 'unit', 'n', 'min', 'median', 'p99', 'max'], ...rows];
  const widths = all[0]?.map((_, column) => Math.max(...all.map((row) => row[column]?.length ?? 0))) ?? [];
  for (const row of all) {
    const cells = row.map((cell, column) =>
      column < 3 ? cell.padEnd(widths[column] ?? 0) : cell.padStart(widths[column] ?? 0),
    );
    console.log(cells.join('  '));
  }
}

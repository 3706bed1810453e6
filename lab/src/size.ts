// Sizes as people write them: 8G, 512M, 1048576.

import { SnowflockError } from '@snowflock/protocol';

const UNITS: Readonly<Record<string, number>> = { '': 1, k: 2 ** 10, m: 2 ** 20, g: 2 ** 30, t: 2 ** 40 };

/** Bytes; the units are powers of 1024, with or without 'B' or 'iB', in any case. */
export function parseSize(text: string): number {
  const match = /^(\d{1,12}(?:\.\d{1,6})?)\s*([kmgt]?)(?:i?b)?$/i.exec(text.trim());
  const unit = UNITS[(match?.[2] ?? '').toLowerCase()] ?? 1;
  const bytes = match ? Math.round(Number(match[1]) * unit) : 0;
  if (bytes > 0 && Number.isSafeInteger(bytes)) return bytes;
  throw new SnowflockError('bad-request', `'${text}' is not a size; write for example 512M or 8G`);
}

/** 512M, 8G, 1.5G: what parseSize reads. */
export function formatSize(bytes: number): string {
  const units: [string, number][] = [
    ['T', 2 ** 40],
    ['G', 2 ** 30],
    ['M', 2 ** 20],
    ['K', 2 ** 10],
  ];
  const [suffix, unit] = units.find(([, size]) => bytes >= size) ?? ['', 1];
  const value = bytes / unit;
  return `${Number.isInteger(value) ? value : value.toFixed(1)}${suffix}`;
}

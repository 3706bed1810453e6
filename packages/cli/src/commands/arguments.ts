// Parsers for numbers in options; what they refuse is wrong usage.

import { InvalidArgumentError } from 'commander';
import { parseSize } from '@snowflock/lab';
import { vmName } from '@snowflock/protocol';

export function parseCount(text: string): number {
  if (!/^\d{1,9}$/.test(text) || Number(text) === 0)
    throw new InvalidArgumentError('It must be a whole number above 0.');
  return Number(text);
}

export function parseClusterid(text: string): number {
  if (!/^\d{1,8}$/.test(text)) throw new InvalidArgumentError('It must be a clusterid; sfstate lists them.');
  return Number(text);
}

/** The name of a VM. */
export function parseVm(text: string): string {
  if (!vmName.safeParse(text).success)
    throw new InvalidArgumentError('It must be a VM, as clusterid:vmid; sfstate lists them.');
  return text;
}

export function parseSeconds(text: string): number {
  const seconds = Number(text);
  if (text.trim() === '' || !(seconds > 0 && seconds <= 86_400))
    throw new InvalidArgumentError('It must be a number of seconds, up to a day.');
  return seconds;
}

export function parseBytes(text: string): number {
  try {
    return parseSize(text);
  } catch {
    throw new InvalidArgumentError('It must be a size such as 512M or 8G.');
  }
}

// Small changes to an input, by a seeded generator.

export type Random = () => number;

/** mulberry32 (public domain, Tommy Ettinger). */
export function seededRandom(seed: number): Random {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = state;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

const NUMBERS = [
  0, 1, 2, 7, 8, 16, 255, 256, 4095, 4096, 65535, 65536, 65544, 0x7fffffff, 0x80000000, 0xffffffff,
];
const STEPS_MAX = 6;

export interface MutationOptions {
  readonly random: Random;
  readonly dictionary: readonly Buffer[];
  /** Inputs to take pieces from. */
  readonly corpus: readonly Buffer[];
  readonly maxBytes: number;
}

export function mutate(input: Buffer, options: MutationOptions): Buffer {
  const { random, maxBytes } = options;
  const steps = 1 + below(random, STEPS_MAX);
  let bytes = input;
  for (let step = 0; step < steps; step++) bytes = mutateOnce(bytes, options);
  return bytes.subarray(0, maxBytes);
}

function mutateOnce(bytes: Buffer, { random, dictionary, corpus }: MutationOptions): Buffer {
  const at = below(random, bytes.length + 1);
  const length = Math.min(1 + below(random, 1 << below(random, 8)), bytes.length - at);
  const replace = (removed: number, ...put: Buffer[]): Buffer =>
    Buffer.concat([bytes.subarray(0, at), ...put, bytes.subarray(at + removed)]);
  switch (below(random, 9)) {
    case 0:
      return at < bytes.length
        ? replace(1, Buffer.from([(bytes[at] ?? 0) ^ (1 << below(random, 8))]))
        : bytes;
    case 1:
      return replace(1, Buffer.from([below(random, 256)]));
    case 2:
      return replace(0, Buffer.from(Array.from({ length: 1 + below(random, 8) }, () => below(random, 256))));
    case 3:
      return replace(length);
    case 4:
      return replace(0, bytes.subarray(at, at + length));
    case 5: {
      const number = Buffer.alloc(4);
      number.writeUInt32LE(pick(random, NUMBERS) ?? 0);
      const size = [1, 2, 4][below(random, 3)] ?? 4;
      return replace(size, number.subarray(0, size));
    }
    case 6: {
      const other = pick(random, corpus) ?? bytes;
      const from = below(random, other.length + 1);
      return replace(length, other.subarray(from, from + 1 + below(random, 64)));
    }
    default: {
      const word = pick(random, dictionary);
      return word ? replace(below(random, 2) === 0 ? 0 : word.length, word) : bytes;
    }
  }
}

function below(random: Random, limit: number): number {
  return Math.floor(random() * limit);
}

function pick<T>(random: Random, from: readonly T[]): T | undefined {
  return from[below(random, from.length)];
}

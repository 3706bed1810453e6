import { describe, expect, it } from 'vitest';
import { LinkPace } from '../src/memtap/link-pace.ts';

const MBIT = 125; // bytes a millisecond

/** Reads of that size, as a link of that rate brings them. */
function receive(
  pace: LinkPace,
  { mbit, bytes, readBytes }: { mbit: number; bytes: number; readBytes: number },
): void {
  for (let got = 0; got < bytes; got += readBytes) pace.onRead(readBytes, readBytes / (mbit * MBIT));
}

describe('the pace of a link', () => {
  it.each([
    [10, 1448, true],
    [100, 1448, true],
    [100, 49_232, true],
    [1000, 1448, false],
    [1000, 65_160, false],
    [10_000, 250_000, false],
  ])('of %i Mbit/s that brings %i bytes at a time: narrow is %s', (mbit, readBytes, narrow) => {
    const pace = new LinkPace();
    receive(pace, { mbit, readBytes, bytes: 1 << 20 });
    expect(pace.narrow).toBe(narrow);
  });

  it('is not known before some has come, and follows the link', () => {
    const pace = new LinkPace();
    receive(pace, { mbit: 100, readBytes: 10_000, bytes: 200_000 });
    expect(pace.narrow).toBe(false);
    receive(pace, { mbit: 100, readBytes: 10_000, bytes: 100_000 });
    expect(pace.narrow).toBe(true);
    receive(pace, { mbit: 1000, readBytes: 10_000, bytes: 1 << 20 });
    expect(pace.narrow).toBe(false);
  });

  it('says when it turns out to be another, once', () => {
    const pace = new LinkPace();
    let changes = 0;
    for (let read = 0; read < 1000; read++) if (pace.onRead(10_000, 1)) changes++;
    for (let read = 0; read < 1000; read++) if (pace.onRead(10_000, 0.01)) changes++;
    expect(changes).toBe(2);
  });

  it('of a fast link is not narrow because this end or the other stood still again and again', () => {
    const pace = new LinkPace();
    for (let turn = 0; turn < 100; turn++) {
      for (let read = 0; read < 3; read++) pace.onRead(60_000, 0.1);
      pace.onRead(60_000, 30); // waited for a CPU
      pace.onRead(1 << 20, 40); // what came meanwhile
      expect(pace.narrow).toBe(false);
    }
  });

  it('of a narrow link is narrow although its first bytes come at once', () => {
    const pace = new LinkPace();
    for (let turn = 0; turn < 20; turn++) {
      receive(pace, { mbit: 10_000, readBytes: 65_536, bytes: 131_072 });
      receive(pace, { mbit: 100, readBytes: 30_000, bytes: 262_144 });
    }
    expect(pace.narrow).toBe(true);
  });
});

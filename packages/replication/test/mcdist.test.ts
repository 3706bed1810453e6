import { describe, expect, it } from 'vitest';
import {
  createMcdistHeader,
  McdistSealer,
  McdistType,
  PAGE_BYTES,
  pieceBytes,
} from '@snowflock/protocol/pages';
import { FlowControl, ROUND_MS } from '../src/mcdist/flow-control.ts';
import { McdistReceiver, REORDER_MS } from '../src/mcdist/receiver.ts';
import { type Answer, LOCKSTEP_MS, McdistSender, MEMBER_TIMEOUT_MS } from '../src/mcdist/sender.ts';

const HEARS = { hears: true, bytes: 0, intervalMs: 0 };

/** A sender with two members, what it sent to all, and how many answers are complete. */
function twoMembers() {
  const sent: number[] = [];
  const sender = new McdistSender<string>({
    transmit: (_region, page) => {
      sent.push(page);
      return PAGE_BYTES;
    },
  });
  sender.open([100]);
  sender.report(1, HEARS, 0);
  sender.report(2, HEARS, 0);
  const complete: string[] = [];
  const ask = (name: string, page: number, nowMs: number, missed = false, urgent = true): string => {
    const answer: Answer = { left: 0, complete: () => complete.push(name) };
    return sender.request({ region: 0, page, urgent, missed, data: name }, answer, nowMs);
  };
  return { sender, sent, complete, ask };
}

describe('the sender of mcdist', () => {
  it('sends a page once that two ask for before it has left, and answers both then', () => {
    const { sender, sent, complete, ask } = twoMembers();
    expect([ask('a', 5, 0), ask('b', 5, 0)]).toEqual(['multicast', 'multicast']);
    expect(complete).toEqual([]);
    expect(sender.pump(0)).toBe(-1);
    expect(sent).toEqual([5]);
    expect(complete).toEqual(['a', 'b']);
  });

  it('ignores whoever asks shortly after it, and serves alone who asks late, or has missed it', () => {
    const { sender, sent, ask } = twoMembers();
    ask('a', 5, 0);
    sender.pump(0);
    expect(ask('b', 5, LOCKSTEP_MS - 1)).toBe('sent');
    expect(ask('b', 5, LOCKSTEP_MS - 1, true)).toBe('unicast');
    expect(ask('c', 5, LOCKSTEP_MS)).toBe('unicast');
    expect(sent).toEqual([5]);
  });

  it('sends a page to all again when many have lost it', () => {
    const { sender, sent, ask } = twoMembers();
    ask('a', 5, 0);
    sender.pump(0);
    expect(['b', 'c', 'd', 'e'].map((name) => ask(name, 5, 10, true))).toEqual([
      'unicast',
      'unicast',
      'multicast',
      'multicast',
    ]);
    sender.pump(10);
    expect(sent).toEqual([5, 5]);
    expect(ask('f', 5, 11, true)).toBe('sent');
  });

  it('sends what a guest waits for first, also what was only fetched ahead so far', () => {
    const { sender, sent, complete, ask } = twoMembers();
    for (const page of [1, 2, 3]) ask(`ahead ${page}`, page, 0, false, false);
    ask('waits', 9, 0);
    ask('waits', 3, 0);
    expect(sender.pump(0)).toBe(-1);
    expect(sent).toEqual([9, 3, 1, 2]);
    expect(complete).toEqual(['waits', 'ahead 3', 'waits', 'ahead 1', 'ahead 2']);
  });

  it('sends to all only while two hear it', () => {
    const { sender } = twoMembers();
    expect(sender.sendsToAll(0, 0)).toBe(true);
    expect(sender.sendsToAll(1, 0)).toBe(false);
    sender.report(2, { ...HEARS, hears: false }, 1);
    expect(sender.sendsToAll(0, 1)).toBe(false);
    sender.report(2, HEARS, 2);
    expect(sender.sendsToAll(0, MEMBER_TIMEOUT_MS + 1)).toBe(false);
  });

  it('sends what a guest waits for although the rate is used up, within a bound', () => {
    const { sender, sent, ask } = twoMembers();
    for (let page = 0; page < 50; page++) ask(`ahead ${page}`, page, 0, false, false);
    expect(sender.pump(0)).toBeGreaterThan(0);
    const ahead = sent.length;
    for (let page = 99; page > 60; page--) ask(`waits ${page}`, page, 0);
    ask('waits 49', 49, 0);
    expect(sender.pump(0)).toBeGreaterThan(0);
    const atOnce = sent.slice(ahead);
    expect(atOnce).toEqual(Array.from({ length: atOnce.length }, (_, index) => 99 - index));
    expect(atOnce.length).toBeGreaterThan(4);
    expect(atOnce.length).toBeLessThan(16);
    // and before anything else, however long it takes
    for (let nowMs = 1; sent.length < 90 && nowMs < 1000; nowMs++) sender.pump(nowMs);
    expect(sent.indexOf(49)).toBe(ahead + 39);
  });

  it('keeps pages that do not fit its rate in order', () => {
    const { sender, sent, ask } = twoMembers();
    for (let page = 0; page < 60; page++) ask(`${page}`, page, 0);
    const waitMs = sender.pump(0);
    expect(waitMs).toBeGreaterThan(0);
    const first = sent.length;
    for (let nowMs = waitMs; sent.length < 60; nowMs += 1) sender.pump(nowMs);
    expect(first).toBeLessThan(60);
    expect(sent).toEqual(Array.from({ length: 60 }, (_, page) => page));
  });
});

describe('flow control', () => {
  it('hardly heeds a receiver that gets little', () => {
    const flow = new FlowControl();
    for (let round = 0; round < 40; round++) {
      const nowMs = round * ROUND_MS;
      flow.report(1, { bytes: 10e6, intervalMs: 100 }, nowMs);
      flow.report(2, { bytes: 0.1e6, intervalMs: 100 }, nowMs);
      while (flow.take(1e6, nowMs));
      flow.take(1, nowMs + ROUND_MS - 1);
    }
    expect(flow.rate).toBeGreaterThan(70e6);
    expect(flow.rate).toBeLessThan(130e6);
  });
});

/** Sends page `page` in `pieces`; returns its datagrams. */
function pageDatagrams(sealer: McdistSealer, page: number, pieces: number): Buffer[] {
  const data = Buffer.alloc(PAGE_BYTES, page);
  const size = pieceBytes(pieces);
  return Array.from({ length: pieces }, (_, piece) =>
    sealer.seal(
      { ...createMcdistHeader(), type: McdistType.piece, page, piece, pieces },
      data.subarray(piece * size, Math.min(PAGE_BYTES, (piece + 1) * size)),
    ),
  );
}

const KEY = Buffer.alloc(32, 3);
const wanted = (): boolean => true;

describe('the receiver of mcdist', () => {
  it('puts pages together whatever the order of their pieces', () => {
    const receiver = new McdistReceiver({ key: KEY });
    const sealer = new McdistSealer(KEY);
    const both = [...pageDatagrams(sealer, 1, 3), ...pageDatagrams(sealer, 2, 3)].reverse();
    const came = both.map((bytes) => receiver.datagram(bytes, 0, wanted)).map((page) => page?.page);
    expect(came.filter((page) => page !== undefined)).toEqual([2, 1]);
    expect(receiver.counters).toMatchObject({ datagrams: 6, replayed: 0, foreign: 0 });
  });

  it('drops what it has seen, what is too old, and what others send', () => {
    const receiver = new McdistReceiver({ key: KEY });
    const sealer = new McdistSealer(KEY);
    const [first] = pageDatagrams(sealer, 1, 1);
    if (first === undefined) throw new Error('no datagram');
    expect(receiver.datagram(first, 0, wanted)?.page).toBe(1);
    expect(receiver.datagram(first, 0, wanted)).toBeUndefined();
    for (let page = 0; page < 10_000; page++) {
      const [bytes] = pageDatagrams(sealer, 2, 1);
      if (page === 9999 && bytes !== undefined) receiver.datagram(bytes, 0, wanted);
    }
    expect(receiver.datagram(first, 0, wanted)).toBeUndefined();
    const [foreign] = pageDatagrams(new McdistSealer(Buffer.alloc(32, 4)), 3, 1);
    if (foreign === undefined) throw new Error('no datagram');
    foreign.writeUInt32LE(20_000, 8);
    expect(receiver.datagram(foreign, 0, wanted)).toBeUndefined();
    expect(receiver.counters).toMatchObject({ datagrams: 2, replayed: 2, foreign: 1 });
  });

  it('gives a promised page up soon when something later came, else with patience that grows', () => {
    const receiver = new McdistReceiver({ key: KEY });
    const sealer = new McdistSealer(KEY);
    const [lost] = pageDatagrams(sealer, 1, 1);
    receiver.promise(0, 1, sealer.number, 0);
    const { patienceMs } = receiver;
    expect(receiver.nextDueMs).toBe(patienceMs);
    const [later] = pageDatagrams(sealer, 2, 1);
    if (lost === undefined || later === undefined) throw new Error('no datagram');
    receiver.datagram(later, 1, wanted);
    expect(receiver.missed(1 + REORDER_MS - 0.5)).toEqual([]);
    expect(receiver.missed(1 + REORDER_MS)).toMatchObject([{ region: 0, page: 1 }]);
    receiver.datagram(lost, 10, wanted);
    expect(receiver.patienceMs).toBe(2 * patienceMs);
  });

  it('asks for unicast for a while when most is lost, or nothing comes at all', () => {
    const receiver = new McdistReceiver({ key: KEY });
    const sealer = new McdistSealer(KEY);
    expect(receiver.trusts(0)).toBe(false);
    for (let page = 0; page < 3000 && (page < 10 || receiver.trusts(0)); page++) {
      const [bytes] = pageDatagrams(sealer, page % 50, 1);
      if (bytes !== undefined && page % 4 === 0) receiver.datagram(bytes, 0, wanted);
    }
    expect(receiver.trusts(0)).toBe(false);
    expect(receiver.trusts(5000)).toBe(true);
    for (let page = 0; page < 16; page++) receiver.promise(0, page, sealer.number, 5000);
    expect(receiver.missed(9000)).toHaveLength(16);
    expect(receiver.trusts(9001)).toBe(false);
  });

  it('says that packets are lost when some are, and goes on saying so', () => {
    const receiver = new McdistReceiver({ key: KEY });
    const sealer = new McdistSealer(KEY);
    const receive = (count: number, lostEach: number): void => {
      for (let index = 1; index <= count; index++) {
        const [bytes] = pageDatagrams(sealer, index % 50, 1);
        if (bytes !== undefined && index % lostEach !== 0) receiver.datagram(bytes, 0, wanted);
      }
    };
    receive(3000, 1000);
    expect(receiver.lossy).toBe(false);
    receive(1000, 50);
    expect(receiver.lossy).toBe(true);
    receive(3000, Infinity);
    expect(receiver.lossy).toBe(true);
  });
});

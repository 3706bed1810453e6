// The memserver's side of mcdist: the socket, the keys and the timer around the decisions of mcdist/sender.ts.
//
//   no snapshot: probes whoever does not hear it yet --open--> sends pages to all
//
// Owns the UDP socket. Everything that has to arrive goes over the clients' lanes: without multicast all works, by unicast.

import { createSocket, type Socket } from 'node:dgram';
import {
  createMcdistHeader,
  createPageFrame,
  hasPageData,
  MCDIST_MAX_PIECES,
  MCDIST_PORT,
  MCDIST_WHOLE_PAGE_BYTES,
  mcdistGroup,
  McdistSealer,
  McdistType,
  PAGE_BYTES,
  PAGE_FLAG_MISSED,
  PAGE_FLAG_MULTICAST,
  PAGE_FLAG_URGENT,
  PAGE_FRAME_HEADER_BYTES,
  PAGE_WIRE_MAX_PAGES,
  pageBitmapBytes,
  pageDataOffset,
  type PageFrame,
  PageFrameType,
  pieceBytes,
  piecesFor,
  splitDataOffset,
  writePageFrame,
} from '@snowflock/protocol/pages';
import { mtuOf } from '../mcdist/multicast-interface.ts';
import { packetLengths, sealProbes } from '../mcdist/probe.ts';
import { type Answer, McdistSender, type Verdict } from '../mcdist/sender.ts';
import type { PageBuffer } from './page-buffers.ts';

/** Receivers in one network are probed together. */
const PROBE_INTERVAL_MS = 20;
/** Unsent datagrams that the socket may hold: the local link takes no more, and what waits here can still be put in order. */
const SOCKET_MAX_BYTES = 262_144;

interface PageData {
  readonly bytes: Buffer;
  readonly offset: number;
}

/** A client's lane, as far as an answer needs it. */
export interface AnswerTarget {
  write(bytes: Buffer, written?: () => void): void;
}

export class MulticastServer {
  readonly sender: McdistSender<PageData>;
  readonly #socket: Socket;
  readonly #group: string;
  readonly #sealer: McdistSealer;
  readonly #header = createMcdistHeader();
  readonly #frame = createPageFrame();
  readonly #verdicts: (Verdict | undefined)[] = new Array<Verdict | undefined>(PAGE_WIRE_MAX_PAGES);
  readonly #probeLengths: readonly number[];
  /** Longest packet that each receiver ever got. */
  readonly #heardBytes = new Map<number, number>();
  #pieces = 1;
  #probedMs = -Infinity;
  #timer: NodeJS.Timeout | undefined;
  #usable = false;

  constructor(options: { readonly key: Buffer; readonly address: string }) {
    const { key, address } = options;
    this.#group = mcdistGroup(key);
    this.#sealer = new McdistSealer(key);
    this.#probeLengths = [MCDIST_WHOLE_PAGE_BYTES, ...packetLengths(mtuOf(address))];
    this.sender = new McdistSender<PageData>({ transmit: (...page) => this.#transmit(...page) });
    // the group is an address already: looked up the usual way, each datagram would leave a turn late, behind its SPLIT
    this.#socket = createSocket({ type: 'udp4', lookup: (name, _options, found) => found(null, name, 4) });
    // no interface, no route, no buffers: receivers hear nothing, and are served by unicast
    this.#socket.on('error', (error) => this.#fail(error));
    this.#socket.bind({ address }, () => {
      try {
        this.#socket.setMulticastInterface(address);
        this.#socket.setMulticastTTL(1);
        this.#socket.setMulticastLoopback(true);
        this.#usable = true;
      } catch (error) {
        this.#fail(error as Error);
      }
    });
  }

  stats() {
    const { counters, flow } = this.sender;
    return {
      multicastMembers: this.sender.memberCount(performance.now()),
      multicastPages: counters.multicastPages,
      multicastDatagrams: this.#sealer.number,
      multicastBytes: counters.multicastBytes,
      lockstepPages: counters.lockstepPages,
      repairedPages: counters.repairedPages,
      multicastRate: Math.round(flow.rate),
    };
  }

  /** A client's REPORT. */
  report(client: number, frame: Readonly<PageFrame>): void {
    const { requestId: bytes, firstPage: intervalUs, pageCount: heardBytes } = frame;
    const hears = heardBytes > 0;
    this.sender.report(client, { hears, bytes, intervalMs: intervalUs / 1000 }, performance.now());
    if (hears) this.#heardBytes.set(client, heardBytes);
    else this.#probe();
    this.#choosePieces();
  }

  forget(client: number): void {
    this.sender.forget(client);
    this.#heardBytes.delete(client);
    this.#choosePieces();
  }

  /**
   * Takes over the DATA frame that answers `read`, if some of it goes to everyone or is on its way. What remains goes to `target` once
   * that has left, and `buffer` is released then. Returns false when the frame has to be sent as it is.
   */
  answer(read: Readonly<PageFrame>, buffer: PageBuffer, target: AnswerTarget): boolean {
    const nowMs = performance.now();
    if (!this.#usable || (read.flags & PAGE_FLAG_MULTICAST) === 0) return false;
    if (!this.sender.sendsToAll(read.region, nowMs)) return false;
    const { region, firstPage, pageCount } = read;
    const missed = (read.flags & PAGE_FLAG_MISSED) !== 0;
    const urgent = (read.flags & PAGE_FLAG_URGENT) !== 0;
    const rest = { ...read };
    const answer: Answer = { left: 0, complete: () => this.#complete(rest, { buffer, verdicts, target }) };
    let at = pageDataOffset(pageCount);
    let inFrame = 0;
    let split = false;
    for (let index = 0; index < pageCount; index++) {
      this.#verdicts[index] = undefined;
      if (!hasPageData(buffer.bytes, 0, index)) continue;
      const data = { bytes: buffer.bytes, offset: at };
      const asked = { region, page: firstPage + index, urgent, missed, data };
      const verdict = this.sender.request(asked, answer, nowMs);
      this.#verdicts[index] = verdict;
      if (verdict === 'unicast') inFrame++;
      else split = true;
      at += PAGE_BYTES;
    }
    if (!split) return false;
    const verdicts = this.#verdicts.slice(0, pageCount);
    rest.dataPages = inFrame;
    if (answer.left === 0) answer.complete();
    // the timer is that of pages which only might be needed
    if (urgent) clearTimeout(this.#timer);
    if (urgent) this.#timer = undefined;
    this.#pump();
    return true;
  }

  close(): void {
    clearTimeout(this.#timer);
    this.#usable = false;
    this.#socket.close();
  }

  /** What was to go to everyone has left: the rest goes to who asked. */
  #complete(
    read: PageFrame,
    answer: {
      readonly buffer: PageBuffer;
      readonly verdicts: readonly (Verdict | undefined)[];
      readonly target: AnswerTarget;
    },
  ): void {
    const { buffer, verdicts, target } = answer;
    const bitmapBytes = pageBitmapBytes(read.pageCount);
    const head = Buffer.alloc(splitDataOffset(read.pageCount));
    writePageFrame(head, 0, Object.assign(this.#frame, read, { type: PageFrameType.split, flags: 0 }));
    head.writeUInt32LE(this.#sealer.number % 2 ** 32, head.length - 4);
    const inFrame: Buffer[] = [];
    let at = pageDataOffset(read.pageCount);
    for (const [index, verdict] of verdicts.entries()) {
      if (verdict === undefined) continue;
      const byte = PAGE_FRAME_HEADER_BYTES + (verdict === 'unicast' ? 0 : bitmapBytes) + (index >>> 3);
      head[byte] = (head[byte] ?? 0) | (1 << (index & 7));
      if (verdict === 'unicast') inFrame.push(buffer.bytes.subarray(at, at + PAGE_BYTES));
      at += PAGE_BYTES;
    }
    target.write(head, inFrame.length === 0 ? buffer.release : undefined);
    inFrame.forEach((page, index) =>
      target.write(page, index === inFrame.length - 1 ? buffer.release : undefined),
    );
  }

  #pump(): void {
    if (this.#timer !== undefined) return;
    const full = this.#socket.getSendQueueSize() > SOCKET_MAX_BYTES;
    const waitMs = full ? 1 : this.sender.pump(performance.now());
    if (waitMs < 0) return;
    this.#timer = setTimeout(
      () => {
        this.#timer = undefined;
        this.#pump();
      },
      Math.max(1, Math.ceil(waitMs)),
    );
  }

  #transmit(region: number, page: number, { bytes, offset }: PageData): number {
    const pieces = this.#pieces;
    const size = pieceBytes(pieces);
    let sent = 0;
    for (let piece = 0; piece < pieces; piece++) {
      const start = piece * size;
      const body = bytes.subarray(offset + start, offset + Math.min(PAGE_BYTES, start + size));
      Object.assign(this.#header, { type: McdistType.piece, region, page, piece, pieces });
      sent += this.#send(this.#sealer.seal(this.#header, body));
    }
    return sent;
  }

  #send(datagram: Buffer): number {
    if (this.#usable) this.#socket.send(datagram, MCDIST_PORT, this.#group);
    return datagram.length + 28;
  }

  /** One of each length that may be the longest to come through. */
  #probe(): void {
    const nowMs = performance.now();
    if (nowMs - this.#probedMs < PROBE_INTERVAL_MS) return;
    this.#probedMs = nowMs;
    for (const probe of sealProbes(this.#sealer, this.#probeLengths)) this.#send(probe);
  }

  /** As many as the receiver with the shortest packets needs. */
  #choosePieces(): void {
    let pieces = 1;
    for (const heardBytes of this.#heardBytes.values()) pieces = Math.max(pieces, piecesFor(heardBytes));
    this.#pieces = Math.min(pieces, MCDIST_MAX_PIECES);
  }

  #fail(error: Error): void {
    if (this.#usable) console.error(`memserver: multicast failed, serving by unicast: ${error.message}`);
    this.#usable = false;
  }
}

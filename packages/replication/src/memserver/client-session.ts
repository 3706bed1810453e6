// One lane as the memserver sees it.
//
//   greeting --proof ok--> serving --> closed          greeting --bad proof, 5 s--> closed
//
// Invariants: no page leaves before the peer proved that it holds the key. A breach of the protocol ends the lane.
// Bounded: requests waiting (MAX_BACKLOG), bytes unsent (PAUSE_BYTES: then nothing more is read from this peer).

import { randomBytes } from 'node:crypto';
import type { Socket } from 'node:net';
import {
  checkPageProof,
  compressPages,
  createPageFrame,
  encodePageHello,
  PAGE_BYTES,
  PAGE_FLAG_COMPRESSIBLE,
  PAGE_FLAG_EARLIER,
  PAGE_FLAG_URGENT,
  PAGE_FRAME_HEADER_BYTES,
  PAGE_HANDSHAKE_TIMEOUT_MS,
  PAGE_NONCE_BYTES,
  PAGE_PROOF_BYTES,
  pageProof,
  PageErrorCode,
  type PageFrame,
  PageFrameType,
  PageRegion,
  readPageFrame,
  SnowflockError,
  toSnowflockError,
  writePageFrame,
} from '@snowflock/protocol/pages';
import type { MulticastServer } from './multicast-server.ts';
import type { PageBuffer, PageBufferPool } from './page-buffers.ts';
import type { Snapshot } from './snapshot.ts';
import { NEEDS_MAX } from '../needs.ts';
import { runsOf, type Follower, type NeedLog } from './need-log.ts';
import type { WakeUpLog } from './wake-up-log.ts';

/** A peer that leaves this much unread is not sent more; it bounds the memory a slow client can hold. */
const PAUSE_BYTES = 4 * 1024 * 1024;
/** Non-urgent answers wait while this much is unsent, so that an urgent one never queues behind megabytes. */
const BULK_WINDOW_BYTES = 1024 * 1024;
/** A client's turn: enough to be worth a system call, short enough for the others and for urgent reads. */
const TURN_PAGES = 64;
/** Requests of one lane that wait. An honest memtap has at most its 4096 read slots under way. */
const MAX_BACKLOG = 8192;
/** Reads of one lane that are under way at a time at qemu-nbd, at a memtap, or in being compressed; those that a guest waits for are not held up by it. */
const MAX_SLOW_READS = 16;
/** Fewer pages are not worth compressing. */
const COMPRESS_MIN_PAGES = 3;

export interface SessionCounters {
  requests: number;
  errors: number;
  sentBytes: number;
  compressedPages: number;
  droppedClients: number;
}

export interface SessionOptions {
  readonly socket: Socket;
  readonly key: Buffer;
  readonly snapshot: Snapshot;
  readonly buffers: PageBufferPool;
  readonly counters: SessionCounters;
  readonly wakeUp: WakeUpLog;
  readonly needs: NeedLog;
  /** Of this connection, among all that the memserver ever had. */
  readonly id: number;
  /** Undefined: everything is unicast. */
  readonly multicast: MulticastServer | undefined;
  /** Something waits for a turn. */
  readonly onBacklog: () => void;
  readonly onHandshakeFailed: () => void;
  readonly onReadFailed: (error: SnowflockError) => void;
}

export class ClientSession implements Follower {
  readonly #socket: Socket;
  readonly #options: SessionOptions;
  readonly #serverNonce = randomBytes(PAGE_NONCE_BYTES);
  readonly #deadline: NodeJS.Timeout;
  #serving = false;
  #pending: Buffer = Buffer.alloc(0);
  readonly #frame = createPageFrame();
  readonly #backlog: PageFrame[] = [];
  #slowReads = 0;
  /** Of the log of needs: told so far, and how many more it wants to hear of. */
  #told = 0;
  #toTell = 0;

  constructor(options: SessionOptions) {
    this.#options = options;
    this.#socket = options.socket;
    this.#socket.on('error', () => this.#socket.destroy());
    this.#socket.on('close', () => {
      clearTimeout(this.#deadline);
      this.#backlog.length = 0;
      options.multicast?.forget(options.id);
      options.needs.leave(this);
      if (!this.#serving) options.onHandshakeFailed();
    });
    this.#socket.on('drain', () => {
      this.#socket.resume();
      if (this.#backlog.length > 0) options.onBacklog();
      this.tell();
    });
    this.#socket.on('data', (chunk: Buffer) => this.#receive(chunk));
    this.#deadline = setTimeout(() => this.destroy(), PAGE_HANDSHAKE_TIMEOUT_MS);
    this.#socket.write(encodePageHello(this.#serverNonce));
  }

  destroy(): void {
    this.#socket.destroy();
  }

  /** Tells a proven peer that the snapshot is there; the others hear it once they have proved themselves. */
  announceFrozen(): void {
    if (this.#serving) this.#sendHeader({ ...createPageFrame(), type: PageFrameType.frozen });
  }

  /** Serves a few waiting requests if the peer keeps up, in one write. Returns whether more could be served at once. */
  serveTurn(): boolean {
    this.#socket.cork();
    let pages = 0;
    while (pages < TURN_PAGES && this.#mayServe()) {
      const read = this.#backlog.shift();
      if (read === undefined) break;
      pages += read.pageCount;
      this.#serve(read);
    }
    this.#socket.uncork();
    return this.#mayServe();
  }

  #mayServe(): boolean {
    return (
      this.#backlog.length > 0 &&
      this.#slowReads < MAX_SLOW_READS &&
      this.#socket.writableLength < BULK_WINDOW_BYTES &&
      !this.#socket.destroyed
    );
  }

  #receive(chunk: Buffer): void {
    const bytes = this.#pending.length === 0 ? chunk : Buffer.concat([this.#pending, chunk]);
    let at = 0;
    try {
      if (!this.#serving) at = this.#checkProof(bytes);
      if (this.#serving) at = this.#takeFrames(bytes, at);
    } catch (thrown) {
      const error = toSnowflockError(thrown);
      if (error.code !== 'bad-request' && error.code !== 'unauthorized') throw thrown;
      this.#options.counters.droppedClients++;
      console.error(`memserver: dropped ${this.#socket.remoteAddress ?? 'a client'}: ${error.message}`);
      this.destroy();
      return;
    }
    this.#pending = at === bytes.length ? Buffer.alloc(0) : bytes.subarray(at);
    if (this.#socket.writableLength > PAUSE_BYTES) this.#socket.pause();
  }

  /** Returns how many bytes the proof took: 0 while it is incomplete. */
  #checkProof(bytes: Buffer): number {
    if (bytes.length < PAGE_PROOF_BYTES) return 0;
    const nonces = { server: this.#serverNonce, client: bytes.subarray(0, PAGE_NONCE_BYTES) };
    const proof = bytes.subarray(PAGE_NONCE_BYTES, PAGE_PROOF_BYTES);
    if (!checkPageProof(proof, this.#options.key, 'client', nonces))
      throw new SnowflockError('unauthorized', 'it does not hold the key of this fork');
    clearTimeout(this.#deadline);
    this.#serving = true;
    this.#socket.write(pageProof(this.#options.key, 'server', nonces));
    if (this.#options.snapshot.memory !== undefined) this.announceFrozen();
    return PAGE_PROOF_BYTES;
  }

  #takeFrames(bytes: Buffer, from: number): number {
    let at = from;
    const frame = this.#frame;
    while (readPageFrame(bytes, at, bytes.length, frame)) {
      at += PAGE_FRAME_HEADER_BYTES;
      if (frame.type === PageFrameType.read) this.#takeRead(frame);
      else if (frame.type === PageFrameType.report) this.#options.multicast?.report(this.#options.id, frame);
      else if (frame.type === PageFrameType.follow) this.#follow(frame.firstPage);
      else if (frame.type === PageFrameType.ping) this.#sendHeader({ ...frame, type: PageFrameType.pong });
      else throw new SnowflockError('bad-request', `a client sent a frame of type ${frame.type}`);
    }
    return at;
  }

  #follow(pages: number): void {
    this.#toTell = Math.min(this.#toTell + pages, NEEDS_MAX);
    this.#options.needs.follow(this);
  }

  tell(): void {
    while (this.#toTell > 0 && !this.#socket.destroyed && this.#socket.writableLength < BULK_WINDOW_BYTES) {
      const { pages, earlier } = this.#options.needs.next(this.#told, this.#toTell);
      if (pages.length === 0) return;
      this.#told += pages.length;
      this.#toTell -= pages.length;
      const frame = { ...createPageFrame(), type: PageFrameType.needed, region: PageRegion.ram };
      frame.flags = earlier ? PAGE_FLAG_EARLIER : 0;
      const runs = runsOf(pages);
      const out = Buffer.allocUnsafe(runs.length * PAGE_FRAME_HEADER_BYTES);
      runs.reduce((at, run) => writePageFrame(out, at, { ...frame, ...run }), 0);
      this.#socket.write(out);
    }
  }

  #takeRead(frame: PageFrame): void {
    const urgent = (frame.flags & PAGE_FLAG_URGENT) !== 0 && frame.region !== PageRegion.disk;
    if (urgent && this.#socket.writableLength < PAUSE_BYTES) {
      this.#serve(frame);
      return;
    }
    if (this.#backlog.length >= MAX_BACKLOG)
      throw new SnowflockError('bad-request', 'more requests than it may have waiting');
    this.#backlog.push({ ...frame });
    this.#options.onBacklog();
  }

  #serve(read: PageFrame): void {
    const { snapshot, buffers, counters } = this.#options;
    counters.requests++;
    const refusal = snapshot.refuse(read);
    if (refusal !== undefined) {
      this.#sendError(read, refusal);
      return;
    }
    this.#options.wakeUp.note(read);
    this.#options.needs.note(read);
    const buffer = buffers.borrow(read.pageCount);
    if (snapshot.isSlow(read)) {
      void this.#serveSlow({ ...read }, buffer);
      return;
    }
    let length: number;
    try {
      length = snapshot.fillMemory(buffer.bytes, read);
    } catch (thrown) {
      buffer.release();
      this.#options.onReadFailed(toSnowflockError(thrown));
      this.#sendError(read, PageErrorCode.sourceLost);
      return;
    }
    this.#answer(read, buffer, length);
  }

  /** Sends the DATA frame in `buffer`, or what is left of it when other hosts are to have its pages, too. */
  #answer(read: PageFrame, buffer: PageBuffer, length: number): void {
    if (this.#options.multicast?.answer(read, buffer, this) === true) return;
    const dataPages = Math.floor(length / PAGE_BYTES);
    if (isCompressible(read) && dataPages >= COMPRESS_MIN_PAGES)
      void this.#answerCompressed({ ...read, type: PageFrameType.data, dataPages }, buffer, length);
    else this.write(buffer.bytes.subarray(0, length), buffer.release);
  }

  async #answerCompressed(frame: PageFrame, buffer: PageBuffer, length: number): Promise<void> {
    this.#slowReads++;
    try {
      // what cannot be compressed goes as it is
      const packed = await compressPages(buffer.bytes, frame).catch(() => undefined);
      if (packed === undefined) {
        this.write(buffer.bytes.subarray(0, length), buffer.release);
      } else {
        this.#options.counters.compressedPages += frame.dataPages;
        this.write(packed);
        buffer.release();
      }
    } finally {
      this.#endSlowRead();
    }
  }

  #endSlowRead(): void {
    this.#slowReads--;
    if (this.#backlog.length > 0) this.#options.onBacklog();
  }

  /** For answers that are made elsewhere. */
  write(bytes: Buffer, written?: () => void): void {
    this.#options.counters.sentBytes += bytes.length;
    this.#socket.write(bytes, written);
  }

  async #serveSlow(read: PageFrame, buffer: PageBuffer): Promise<void> {
    this.#slowReads++;
    try {
      const length = await this.#options.snapshot.fill(buffer.bytes, read);
      this.#answer(read, buffer, length);
    } catch (thrown) {
      // The buffer is not used again: what has failed may still write to it.
      const error = toSnowflockError(thrown);
      if (error.code === 'source-lost') this.#options.onReadFailed(error);
      else console.error('memserver: disk read failed:', error.message);
      this.#sendError(read, error.code === 'source-lost' ? PageErrorCode.sourceLost : PageErrorCode.io);
    } finally {
      this.#endSlowRead();
    }
  }

  #sendError(read: PageFrame, code: PageErrorCode): void {
    this.#options.counters.errors++;
    this.#sendHeader({ ...read, type: PageFrameType.error, flags: code, pageCount: 0, dataPages: 0 });
  }

  #sendHeader(frame: PageFrame): void {
    const out = Buffer.allocUnsafe(PAGE_FRAME_HEADER_BYTES);
    writePageFrame(out, 0, frame);
    this.#socket.write(out);
  }
}

/** The peer says that its link is narrow; what a guest waits for leaves at once all the same. */
function isCompressible({ flags, region }: Readonly<PageFrame>): boolean {
  return (
    (flags & PAGE_FLAG_COMPRESSIBLE) !== 0 &&
    (flags & PAGE_FLAG_URGENT) === 0 &&
    region !== PageRegion.rehearsal
  );
}

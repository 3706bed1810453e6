// One lane: a TCP connection to a memserver that both ends have proved themselves on.
//
//   connecting -> greeted -> proved -> open -> closed          any state --error, deadline--> closed
//
// Owns its socket and one receive buffer, which it reads into without allocating: a frame is handed out where it arrived,
// and is gone when the callback returns.

import { randomBytes } from 'node:crypto';
import { Socket } from 'node:net';
import { performance } from 'node:perf_hooks';
import {
  checkPageProof,
  createPageFrame,
  decodePageHello,
  PAGE_FRAME_MAX_BYTES,
  PAGE_HANDSHAKE_TIMEOUT_MS,
  PAGE_HELLO_BYTES,
  PAGE_NONCE_BYTES,
  PAGE_WELCOME_BYTES,
  type PageFrame,
  type PageNonces,
  pageProof,
  readPageFrame,
  SnowflockError,
  toSnowflockError,
} from '@snowflock/protocol/pages';
import type { PageSource } from '../control/schemas.ts';
import type { LinkPace } from './link-pace.ts';

/** Room for what is left of one frame and three more: fewer, larger reads. */
const RECEIVE_BYTES = 4 * PAGE_FRAME_MAX_BYTES;

export interface LaneOptions {
  readonly source: PageSource;
  readonly key: Buffer;
  readonly pace: LinkPace;
  /** `pace.narrow` has changed. */
  readonly onPace: () => void;
  /** A complete frame at `offset` of `bytes`. Throws 'bad-request' to end the lane. */
  readonly onFrame: (lane: Lane, frame: PageFrame, bytes: Buffer, offset: number) => void;
  /** The lane is about to close its descriptor; called once, synchronously, before the number can be reused. */
  readonly onClosing: (lane: Lane) => void;
  /** The lane is closed; called once, also when it never opened. */
  readonly onClosed: (lane: Lane, reason: string) => void;
}

/** A socket that tells before it closes, whoever closes it. */
class AnnouncingSocket extends Socket {
  closing: (() => void) | undefined;

  override _destroy(error: Error | null, callback: (error?: Error | null) => void): void {
    this.closing?.();
    this.closing = undefined;
    super._destroy(error, callback);
  }
}

export class Lane {
  readonly #options: LaneOptions;
  readonly #socket: AnnouncingSocket;
  readonly #bytes = Buffer.from(new ArrayBuffer(RECEIVE_BYTES));
  readonly #frame = createPageFrame();
  readonly #clientNonce = randomBytes(PAGE_NONCE_BYTES);
  readonly opened: Promise<void>;
  #start = 0;
  #end = 0;
  #readMs = 0;
  #nonces: PageNonces | undefined;
  #open = false;
  #reason: string | undefined;
  #resolveOpened: () => void = () => undefined;
  receivedBytes = 0;
  /** The other end said that it has its snapshot. */
  frozen = false;

  constructor(options: LaneOptions) {
    this.#options = options;
    this.#socket = new AnnouncingSocket({
      onread: {
        // a view is not made anew for the usual case: everything before was whole frames
        buffer: () => (this.#end === 0 ? this.#bytes : this.#bytes.subarray(this.#end)),
        callback: (length) => this.#receive(length),
      },
    });
    this.#socket.closing = () => options.onClosing(this);
    this.#socket.setNoDelay(true);
    this.#socket.on('error', (error) => (this.#reason ??= error.message));
    const deadline = setTimeout(
      () => this.destroy('it did not prove itself in time'),
      PAGE_HANDSHAKE_TIMEOUT_MS,
    );
    this.opened = new Promise((resolve, reject) => {
      this.#resolveOpened = () => {
        clearTimeout(deadline);
        resolve();
      };
      this.#socket.on('close', () => {
        clearTimeout(deadline);
        const reason = this.#reason ?? 'it closed the connection';
        reject(new SnowflockError('unavailable', `source ${describe(options.source)}: ${reason}`));
        options.onClosed(this, reason);
      });
    });
    this.#socket.connect({ host: options.source.address, port: options.source.port });
  }

  /** The descriptor for writes from another thread, or -1 where Node does not tell it. */
  get fd(): number {
    // not a public property; without it every request goes through this thread, which only costs time
    const handle = (this.#socket as unknown as { _handle?: { fd?: number } })._handle;
    return typeof handle?.fd === 'number' ? handle.fd : -1;
  }

  write(bytes: Buffer): void {
    this.#socket.write(bytes);
  }

  destroy(reason: string): void {
    this.#reason ??= reason;
    this.#socket.destroy();
  }

  #receive(length: number): boolean {
    const nowMs = performance.now();
    if (this.#open && this.#start < this.#end && this.#options.pace.onRead(length, nowMs - this.#readMs))
      this.#options.onPace();
    this.#readMs = nowMs;
    this.#end += length;
    this.receivedBytes += length;
    try {
      if (!this.#open) this.#handshake();
      while (this.#open && readPageFrame(this.#bytes, this.#start, this.#end, this.#frame)) {
        if (this.#end - this.#start < this.#frame.length) break;
        const at = this.#start;
        this.#start += this.#frame.length;
        this.#options.onFrame(this, this.#frame, this.#bytes, at);
      }
    } catch (thrown) {
      const error = toSnowflockError(thrown);
      if (error.code === 'internal') throw thrown;
      this.destroy(error.message);
      return false;
    }
    if (this.#start === this.#end) this.#start = this.#end = 0;
    else if (RECEIVE_BYTES - this.#end < PAGE_FRAME_MAX_BYTES) {
      this.#bytes.copyWithin(0, this.#start, this.#end);
      this.#end -= this.#start;
      this.#start = 0;
    }
    return !this.#socket.destroyed;
  }

  #handshake(): void {
    const { key } = this.#options;
    if (this.#nonces === undefined) {
      if (this.#end < PAGE_HELLO_BYTES) return;
      this.#nonces = {
        server: decodePageHello(this.#bytes.subarray(0, PAGE_HELLO_BYTES)),
        client: this.#clientNonce,
      };
      this.#start = PAGE_HELLO_BYTES;
      this.#socket.write(Buffer.concat([this.#clientNonce, pageProof(key, 'client', this.#nonces)]));
    }
    if (this.#end - this.#start < PAGE_WELCOME_BYTES) return;
    const proof = this.#bytes.subarray(this.#start, this.#start + PAGE_WELCOME_BYTES);
    if (!checkPageProof(proof, key, 'server', this.#nonces))
      throw new SnowflockError('unauthorized', 'it does not hold the key of this fork');
    this.#start += PAGE_WELCOME_BYTES;
    this.#open = true;
    this.#resolveOpened();
  }
}

export function describe(source: PageSource): string {
  return `${source.address}:${source.port}`;
}

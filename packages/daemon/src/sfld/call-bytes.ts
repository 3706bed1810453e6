// The bytes that follow a call or its reply on a guest channel (docs/guest-channel.md), each direction with credit.

import { CALL_WINDOW_BYTES, GUEST_PAYLOAD_MAX, SnowflockError } from '@snowflock/protocol';

/** A guest that announced bytes sends some of them within this, once it may. */
const IDLE_TIMEOUT_MS = 30_000;
/** Credit is gathered, so that a result does not cost a frame per frame. */
const GRANT_BYTES = CALL_WINDOW_BYTES / 4;

/** Those of a call, once through. What is not taken is bounded by the window. */
export class IncomingBytes implements AsyncIterable<Buffer> {
  readonly sizeBytes: number;
  readonly #grant: (bytes: number) => void;
  readonly #chunks: Buffer[] = [];
  #credit = CALL_WINDOW_BYTES;
  /** Not yet received. */
  #left: number;
  #taken = 0;
  #failure: SnowflockError | null = null;
  #wake: (() => void) | null = null;

  constructor(sizeBytes: number, grant: (bytes: number) => void) {
    this.sizeBytes = sizeBytes;
    this.#left = sizeBytes;
    this.#grant = grant;
  }

  push(chunk: Buffer): void {
    if (this.#failure) return;
    this.#left -= chunk.length;
    this.#credit -= chunk.length;
    if (this.#left < 0 || this.#credit < 0) {
      const what =
        this.#left < 0 ? `more than the ${this.sizeBytes} bytes announced` : 'more than was granted';
      return this.fail(new SnowflockError('bad-request', `the guest sent ${what}`));
    }
    if (chunk.length > 0) this.#chunks.push(chunk);
    this.#wake?.();
  }

  /** Whoever reads them gets this error. */
  fail(error: SnowflockError): void {
    this.#failure ??= error;
    this.#chunks.length = 0;
    this.#wake?.();
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<Buffer> {
    for (;;) {
      if (this.#failure) throw this.#failure;
      const chunk = this.#chunks.shift();
      if (chunk) {
        yield chunk;
        this.#passed(chunk.length);
      } else if (this.#left <= 0) return;
      else await this.#arrival();
    }
  }

  #passed(bytes: number): void {
    this.#taken += bytes;
    if (this.#left <= 0 || this.#taken < GRANT_BYTES) return;
    this.#credit += this.#taken;
    this.#grant(this.#taken);
    this.#taken = 0;
  }

  async #arrival(): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<void>();
    const late = (): void =>
      this.fail(
        new SnowflockError(
          'timeout',
          `the guest announced ${this.sizeBytes} bytes and sent none of the last ${this.#left} for ${IDLE_TIMEOUT_MS / 1000} s`,
        ),
      );
    const timer = setTimeout(late, IDLE_TIMEOUT_MS);
    this.#wake = resolve;
    await promise;
    this.#wake = null;
    clearTimeout(timer);
  }
}

/** Those of a reply. */
export class OutgoingBytes {
  readonly #send: (chunk: Buffer) => void;
  readonly #signal: AbortSignal;
  #credit = CALL_WINDOW_BYTES;
  #wake: (() => void) | null = null;

  /** `signal`: nobody wants them any more. */
  constructor(send: (chunk: Buffer) => void, signal: AbortSignal) {
    this.#send = send;
    this.#signal = signal;
    signal.addEventListener('abort', () => this.#wake?.(), { once: true });
  }

  grant(bytes: number): void {
    this.#credit = Math.min(this.#credit + bytes, CALL_WINDOW_BYTES);
    this.#wake?.();
  }

  /** Resolves when the last byte is sent, or nobody wants more. */
  async sendAll(source: AsyncIterable<Buffer>): Promise<void> {
    for await (const chunk of source)
      for (let at = 0; at < chunk.length;) {
        if (this.#signal.aborted) return;
        const part = chunk.subarray(at, at + Math.min(this.#credit, GUEST_PAYLOAD_MAX));
        if (part.length > 0) this.#send(part);
        else await new Promise<void>((resolve) => (this.#wake = resolve));
        this.#credit -= part.length;
        at += part.length;
      }
  }
}

// The host's end of the guest channel of one VM (docs/guest-channel.md).
//
// Everything that goes to the guest passes `send`, so that during a fork nothing is half-sent:
//
//   open ──hold(forkId)──▶ held (frames queue) ──release()──▶ open
//   resuming ──HELLO──▶ open        a guest that runs already: an earlier daemon was the other end
//
// A guest that breaks the framing loses its channel, nothing else; one that does not read is not read either.

import { EventEmitter } from 'node:events';
import type { Socket } from 'node:net';
import {
  encodeGuestFrame,
  encodeIdentity,
  GuestFrameDecoder,
  GuestFrameType,
  IDENTIFIED_SETTLING,
  type GuestFrame,
  type GuestIdentity,
  SnowflockError,
  toSnowflockError,
} from '@snowflock/protocol';
import { setTimeout as sleep } from 'node:timers/promises';
import { connectUnix } from './unix-socket.ts';
import { within } from './deadline.ts';

/** Frames queued while a fork holds the channel; a fork lasts some ten ms. */
const HELD_FRAMES_MAX = 4096;
/** While a guest leaves this much unread, nothing more is taken from it: it bounds the answers that pile up for it. */
const UNREAD_MAX_BYTES = 1 << 20;

const REASON_MAX_BYTES = 1_000;

/** QEMU is there already; only its main loop may be busy. */
const RESUME_CONNECT_TIMEOUT_MS = 10_000;
/** The agent looks for its host every 20 ms; a guest that is held by a fork does after 5 s. Doubled up to the second. */
const HELLO_WAIT_MS = 1_000;
const HELLO_WAIT_MAX_MS = 30_000;
/** Long enough for a guest under emulation to see that nobody is there. */
const GAP_MS = 300;
/** What every HELLO looks like behind the first byte of its length. */
const HELLO_MARK = Buffer.concat([
  Buffer.from([0, 0, 0, GuestFrameType.hello, 0, 0, 0, 0, 0, 0, 0]),
  Buffer.from('version='),
]);

interface AgentEvents {
  frame: [GuestFrame];
  /** Nothing but an identity passes from here on, until `release`. */
  hold: [];
  release: [];
  close: [];
}

export class AgentLink extends EventEmitter<AgentEvents> {
  #socket: Socket | null = null;
  /** Null while resuming. */
  #decoder: GuestFrameDecoder | null = null;
  #unread: Buffer = Buffer.alloc(0);
  #onHello: (() => void) | null = null;
  readonly #awaited = new Map<string, (frame: GuestFrame) => void>();
  /** It may come with the frame before it, when nobody waits for it yet. */
  #lastSettled: GuestFrame | null = null;
  #held: Buffer[] | null = null;
  #closeReason = 'the VM ended';
  #closed = false;

  static async connect(
    path: string,
    options: { timeoutMs: number; gone: Promise<unknown> },
  ): Promise<AgentLink> {
    const link = new AgentLink();
    link.#decoder = new GuestFrameDecoder();
    link.#use(await connectUnix(path, { ...options, what: 'guest channel' }));
    return link;
  }

  /**
   * Takes the channel of a running guest over from a daemon before this one; returns at once. Either direction may hold half a
   * frame, so nothing counts before the guest's HELLO, which it sends when it has seen that its host was away; where it has not
   * (it was paused, or held), the connection is given up for a moment and made again. `greeting` is sent at once each time.
   */
  static resume(path: string, options: { gone: Promise<unknown>; greeting?: Buffer | undefined }): AgentLink {
    const link = new AgentLink();
    link.#resume(path, options).catch((error: unknown) => {
      link.#closeReason = toSnowflockError(error).message;
      link.#close();
    });
    return link;
  }

  get closed(): boolean {
    return this.#closed;
  }

  /** Why it is closed. */
  get closeReason(): string {
    return this.#closeReason;
  }

  send(frame: { type: GuestFrameType; id: number; payload?: Buffer | string }): void {
    const bytes = encodeGuestFrame(frame);
    if (!this.#held) {
      this.#socket?.write(bytes);
      return;
    }
    if (this.#held.length >= HELD_FRAMES_MAX)
      throw new SnowflockError(
        'unavailable',
        'too many messages wait for the guest while it forks; try again',
      );
    this.#held.push(bytes);
  }

  reply(callId: number, text: string): void {
    this.send({ type: GuestFrameType.reply, id: callId, payload: text });
  }

  get isHeld(): boolean {
    return this.#held !== null;
  }

  /** What waits for the end of the hold, as whole frames. */
  get heldFrames(): Buffer {
    return Buffer.concat(this.#held ?? []);
  }

  /** Whole frames that another link had for this guest. */
  sendFrames(frames: Buffer): void {
    if (frames.length > 0) this.#socket?.write(frames);
  }

  sendIdentity(forkId: number, identity: GuestIdentity): void {
    this.#socket?.write(identityFrame(forkId, identity));
  }

  /** Quiets the channel and the guest's CPUs; from here on only sendIdentity passes, until `release`. */
  async hold(forkId: number, timeoutMs: number): Promise<void> {
    if (this.#held) throw new SnowflockError('unavailable', 'this VM is being forked already');
    this.#socket?.write(encodeGuestFrame({ type: GuestFrameType.hold, id: forkId }));
    this.#held = [];
    this.emit('hold');
    await this.#frame(GuestFrameType.held, forkId, timeoutMs, 'the guest to hold still for the fork');
  }

  release(): void {
    const queued = this.#held;
    this.#held = null;
    for (const bytes of queued ?? []) this.#socket?.write(bytes);
    this.emit('release');
  }

  /** Resolves when the guest has taken on the identity of this fork; `settling`: its programs go on only when it has settled. */
  async identified(forkId: number, timeoutMs: number): Promise<{ settling: boolean }> {
    const what = 'the guest to take on its identity';
    const { payload } = await this.#frame(GuestFrameType.identified, forkId, timeoutMs, what);
    return { settling: payload.toString('latin1') === IDENTIFIED_SETTLING };
  }

  /** Resolves when a clone's hooks have run; rejects with the guest's reason when one has failed. */
  async settled(forkId: number, timeoutMs: number): Promise<void> {
    const { payload } =
      this.#lastSettled?.id === forkId
        ? this.#lastSettled
        : await this.#frame(GuestFrameType.settled, forkId, timeoutMs, 'the end of the hooks of the clone');
    if (payload.length > 0) throw new SnowflockError('vm-failed', readableReason(payload));
  }

  close(): void {
    this.#close();
  }

  #use(socket: Socket): void {
    this.#socket = socket;
    socket.on('data', (chunk: Buffer) => this.#onData(chunk));
    socket.on('error', () => socket.destroy());
    socket.on('drain', () => socket.resume());
    socket.on('close', () => {
      if (this.#decoder) this.#close();
    });
  }

  #close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#socket?.destroy();
    this.emit('close');
  }

  async #resume(
    path: string,
    options: { gone: Promise<unknown>; greeting?: Buffer | undefined },
  ): Promise<void> {
    const connecting = { timeoutMs: RESUME_CONNECT_TIMEOUT_MS, gone: options.gone, what: 'guest channel' };
    const gone = options.gone.then(() => this.#close());
    for (let waitMs = HELLO_WAIT_MS; !this.#closed; waitMs = Math.min(2 * waitMs, HELLO_WAIT_MAX_MS)) {
      const socket = await connectUnix(path, connecting);
      if (this.#closed) return void socket.destroy();
      this.#unread = Buffer.alloc(0);
      const hello = new Promise<void>((resolve) => (this.#onHello = resolve));
      this.#use(socket);
      if (options.greeting) socket.write(options.greeting);
      await Promise.race([hello, gone, sleep(waitMs, undefined, { ref: false })]);
      if (this.#decoder) return;
      socket.destroy();
      await sleep(GAP_MS, undefined, { ref: false });
    }
  }

  /** The bytes from the guest's HELLO on; null while there is none. */
  #fromHello(chunk: Buffer): Buffer | null {
    this.#unread = Buffer.concat([this.#unread, chunk]);
    const mark = this.#unread.indexOf(HELLO_MARK);
    if (mark < 1) {
      this.#unread = Buffer.from(this.#unread.subarray(-HELLO_MARK.length));
      return null;
    }
    this.#decoder = new GuestFrameDecoder();
    this.#onHello?.();
    return this.#unread.subarray(mark - 1);
  }

  async #frame(type: GuestFrameType, id: number, timeoutMs: number, what: string): Promise<GuestFrame> {
    const key = `${type}:${id}`;
    const onClose = Promise.withResolvers<never>();
    const closed = (): void =>
      onClose.reject(new SnowflockError('vm-failed', `${this.#closeReason} while waiting for ${what}`));
    const arrived = new Promise<GuestFrame>((resolve) => this.#awaited.set(key, resolve));
    this.once('close', closed);
    try {
      return await within(Promise.race([arrived, onClose.promise]), timeoutMs, what);
    } finally {
      this.#awaited.delete(key);
      this.off('close', closed);
    }
  }

  #onData(chunk: Buffer): void {
    const bytes = this.#decoder ? chunk : this.#fromHello(chunk);
    if (!bytes || !this.#decoder) return;
    let frames: GuestFrame[];
    try {
      frames = this.#decoder.push(bytes);
    } catch (error) {
      this.#closeReason = `the guest broke the rules of its channel (${toSnowflockError(error).message})`;
      this.#close();
      return;
    }
    for (const frame of frames) {
      const waiter = this.#awaited.get(`${frame.type}:${frame.id}`);
      if (waiter) waiter(frame);
      if (frame.type === GuestFrameType.settled) this.#lastSettled = frame;
      this.emit('frame', frame);
    }
    if (this.#socket && this.#socket.writableLength > UNREAD_MAX_BYTES) this.#socket.pause();
  }
}

/** What a guest gives as a reason is shown to people. */
function readableReason(payload: Buffer): string {
  return payload.toString('utf8', 0, REASON_MAX_BYTES).replace(/[\s\p{Cc}]+/gu, ' ');
}

export function identityFrame(forkId: number, identity: GuestIdentity): Buffer {
  return encodeGuestFrame({ type: GuestFrameType.identity, id: forkId, payload: encodeIdentity(identity) });
}

// The host's end of the guest channel of one VM (docs/guest-channel.md).
//
// Everything that goes to the guest passes `send`, so that during a fork nothing is half-sent:
//
//   open ──hold(forkId)──▶ held (frames queue) ──release()──▶ open
//
// A guest that breaks the framing loses its channel, nothing else; one that does not read is not read either.

import { EventEmitter } from 'node:events';
import type { Socket } from 'node:net';
import {
  encodeGuestFrame,
  encodeIdentity,
  GuestFrameDecoder,
  GuestFrameType,
  type GuestFrame,
  type GuestIdentity,
  SnowflockError,
  toSnowflockError,
} from '@snowflock/protocol';
import { connectUnix } from './unix-socket.ts';
import { within } from './deadline.ts';

/** Frames queued while a fork holds the channel; a fork lasts some ten ms. */
const HELD_FRAMES_MAX = 4096;
/** While a guest leaves this much unread, nothing more is taken from it: it bounds the answers that pile up for it. */
const UNREAD_MAX_BYTES = 1 << 20;

interface AgentEvents {
  frame: [GuestFrame];
  close: [];
}

export class AgentLink extends EventEmitter<AgentEvents> {
  readonly #socket: Socket;
  readonly #decoder = new GuestFrameDecoder();
  readonly #awaited = new Map<string, () => void>();
  #held: Buffer[] | null = null;
  #closeReason = 'the VM ended';
  #closed = false;

  private constructor(socket: Socket) {
    super();
    this.#socket = socket;
    socket.on('data', (chunk: Buffer) => this.#onData(chunk));
    socket.on('error', () => socket.destroy());
    socket.on('drain', () => socket.resume());
    socket.on('close', () => {
      this.#closed = true;
      this.emit('close');
    });
  }

  static async connect(
    path: string,
    options: { timeoutMs: number; gone: Promise<unknown> },
  ): Promise<AgentLink> {
    return new AgentLink(await connectUnix(path, { ...options, what: 'guest channel' }));
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
      this.#socket.write(bytes);
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

  sendIdentity(forkId: number, identity: GuestIdentity): void {
    this.#socket.write(
      encodeGuestFrame({ type: GuestFrameType.identity, id: forkId, payload: encodeIdentity(identity) }),
    );
  }

  /** Quiets the channel and the guest's CPUs; from here on only sendIdentity passes, until `release`. */
  async hold(forkId: number, timeoutMs: number): Promise<void> {
    if (this.#held) throw new SnowflockError('unavailable', 'this VM is being forked already');
    this.#socket.write(encodeGuestFrame({ type: GuestFrameType.hold, id: forkId }));
    this.#held = [];
    await this.#frame(GuestFrameType.held, forkId, timeoutMs, 'the guest to hold still for the fork');
  }

  release(): void {
    const queued = this.#held;
    this.#held = null;
    for (const bytes of queued ?? []) this.#socket.write(bytes);
  }

  /** Resolves when the guest has taken on the identity of this fork. */
  async identified(forkId: number, timeoutMs: number): Promise<void> {
    await this.#frame(GuestFrameType.identified, forkId, timeoutMs, 'the guest to take on its identity');
  }

  close(): void {
    this.#socket.destroy();
  }

  async #frame(type: GuestFrameType, id: number, timeoutMs: number, what: string): Promise<void> {
    const key = `${type}:${id}`;
    const onClose = Promise.withResolvers<never>();
    const closed = (): void =>
      onClose.reject(new SnowflockError('vm-failed', `${this.#closeReason} while waiting for ${what}`));
    const arrived = new Promise<void>((resolve) => this.#awaited.set(key, resolve));
    this.once('close', closed);
    try {
      await within(Promise.race([arrived, onClose.promise]), timeoutMs, what);
    } finally {
      this.#awaited.delete(key);
      this.off('close', closed);
    }
  }

  #onData(chunk: Buffer): void {
    let frames: GuestFrame[];
    try {
      frames = this.#decoder.push(chunk);
    } catch (error) {
      this.#closeReason = `the guest broke the rules of its channel (${toSnowflockError(error).message})`;
      this.#socket.destroy();
      return;
    }
    for (const frame of frames) {
      const waiter = this.#awaited.get(`${frame.type}:${frame.id}`);
      if (waiter) waiter();
      this.emit('frame', frame);
    }
    if (this.#socket.writableLength > UNREAD_MAX_BYTES) this.#socket.pause();
  }
}

// One VM's guest channel put to work: calls answered, exec sessions relayed, identity at boot.

import { GuestFrameType, SnowflockError, type GuestFrame } from '@snowflock/protocol';
import type { AgentLink } from '@snowflock/vm';
import type { GuestCalls } from './guest-calls.ts';
import { ExecSessions } from './exec-sessions.ts';
import { monotonicMs } from './context.ts';

/** Calls of one guest that may be unanswered at once; joins block, so there can be several. */
const PENDING_CALLS_MAX = 64;

export class GuestPort {
  readonly link: AgentLink;
  readonly exec: ExecSessions;
  /** When a program in this VM first called; null until then. */
  firstCallAtMs: number | null = null;
  readonly #calls: GuestCalls;
  readonly #pending = new Map<number, AbortController>();
  readonly #onHello: () => void;
  readonly #ready = Promise.withResolvers<void>();

  constructor(options: { link: AgentLink; calls: GuestCalls; onHello: () => void }) {
    this.link = options.link;
    this.#calls = options.calls;
    this.#onHello = options.onHello;
    this.exec = new ExecSessions(options.link);
    this.#ready.promise.catch(() => undefined); // nobody may be waiting for the agent when the VM ends
    options.link.on('frame', (frame) => this.#onFrame(frame));
    options.link.once('close', () => {
      for (const pending of this.#pending.values()) pending.abort();
      this.exec.closeAll();
      this.#ready.reject(this.#closed());
    });
  }

  /** Resolves once the guest's agent has its identity: commands may be run. Rejects when there is no channel any more. */
  get ready(): Promise<void> {
    return this.link.closed ? Promise.reject(this.#closed()) : this.#ready.promise;
  }

  #closed(): SnowflockError {
    return new SnowflockError('vm-failed', `the guest cannot be reached: ${this.link.closeReason}`);
  }

  #onFrame(frame: GuestFrame): void {
    switch (frame.type) {
      case GuestFrameType.hello:
        this.#onHello();
        return;
      case GuestFrameType.identified:
        this.#ready.resolve();
        return;
      case GuestFrameType.call:
        this.firstCallAtMs ??= monotonicMs();
        void this.#answer(frame);
        return;
      case GuestFrameType.cancel:
        this.#pending.get(frame.id)?.abort();
        return;
      case GuestFrameType.execOut:
      case GuestFrameType.execExit:
      case GuestFrameType.execCredit:
        this.exec.fromGuest(frame);
        return;
      case GuestFrameType.held:
        return; // AgentLink.hold waits for it
      case GuestFrameType.reply:
      case GuestFrameType.hold:
      case GuestFrameType.identity:
      case GuestFrameType.execStart:
      case GuestFrameType.execIn:
      case GuestFrameType.execSignal:
        return; // a guest has no business sending these; they mean nothing
      default:
        frame.type satisfies never;
    }
  }

  async #answer(frame: GuestFrame): Promise<void> {
    if (this.#pending.size >= PENDING_CALLS_MAX || this.#pending.has(frame.id)) {
      this.link.reply(frame.id, `err unavailable more than ${PENDING_CALLS_MAX} calls wait already`);
      return;
    }
    const abort = new AbortController();
    this.#pending.set(frame.id, abort);
    const text = await this.#calls.answer(frame.payload.toString('utf8'), {
      callId: frame.id,
      signal: abort.signal,
    });
    this.#pending.delete(frame.id);
    if (!this.link.closed && !abort.signal.aborted) this.link.reply(frame.id, text);
  }
}

// One VM's guest channel put to work: calls answered, exec sessions relayed, identity at boot.

import {
  announcedBytes,
  GuestFrameType,
  SnowflockError,
  type ChannelState,
  type GuestFrame,
} from '@snowflock/protocol';
import { setTimeout as sleep } from 'node:timers/promises';
import type { AgentLink } from '@snowflock/vm';
import { IncomingBytes, OutgoingBytes } from './call-bytes.ts';
import type { GuestCalls } from './guest-calls.ts';
import { ExecSessions } from './exec-sessions.ts';
import { monotonicMs } from './context.ts';

/** Calls of one guest that may be unanswered at once; joins block, so there can be several. */
const PENDING_CALLS_MAX = 64;
const BUSY_PAUSE_MS = 100;

/** Made again by whoever has the guest next: as when its link was lost (docs/guest-channel.md). A fork that has not begun is one. */
const REPEATABLE = new Set([
  ...['ic_join', 'wait_clones', 'list_tickets', 'read_ticket_info', 'request_clone_ticket', 'clone_master'],
]);
const QUIET_POLL_MS = 20;
const AGENT_TIMEOUT_MS = 2_000;

interface PendingCall {
  readonly line: string;
  /** Its reply has begun. */
  replied: boolean;
  /** Aborts when its caller is gone. */
  readonly signal: AbortSignal;
  /** That follow its line. */
  readonly bytes: IncomingBytes | null;
  readonly reply: OutgoingBytes;
  readonly cancel: () => void;
}

export class GuestPort {
  readonly link: AgentLink;
  readonly exec: ExecSessions;
  /** When a program in this VM first called; null until then. */
  firstCallAtMs: number | null = null;
  readonly #spoken = Promise.withResolvers<void>();
  /** Resolves when a program in this VM has called, or a command printed something; maybe never. */
  readonly spoken = this.#spoken.promise;
  readonly #calls: GuestCalls;
  readonly #pending = new Map<number, PendingCall>();
  readonly #onHello: () => void;
  readonly #ready = Promise.withResolvers<void>();
  /** The guest's agent has taken on its identity on this link. */
  hasAgent = false;

  /** Until sfmd knows that this host has the VM. */
  readonly #admitted: Promise<void>;

  constructor(options: {
    readonly link: AgentLink;
    readonly calls: GuestCalls;
    readonly onHello: () => void;
    readonly admitted?: Promise<void>;
  }) {
    this.link = options.link;
    this.#calls = options.calls;
    this.#onHello = options.onHello;
    this.#admitted = options.admitted ?? Promise.resolve();
    this.exec = new ExecSessions(options.link);
    this.#ready.promise.catch(() => undefined); // nobody may be waiting for the agent when the VM ends
    options.link.on('frame', (frame) => this.#onFrame(frame));
    options.link.once('close', () => {
      for (const pending of this.#pending.values()) pending.cancel();
      this.exec.closeAll();
      this.#ready.reject(this.#closed());
    });
  }

  /** Resolves once the guest's agent has its identity: commands may be run. Rejects when there is no channel any more. */
  get ready(): Promise<void> {
    return this.link.closed ? Promise.reject(this.#closed()) : this.#ready.promise;
  }

  /** Whether it can be held: one that has an agent and is up has said so long before. */
  async agentAnswers(): Promise<boolean> {
    if (!this.hasAgent) {
      const late = sleep(AGENT_TIMEOUT_MS, undefined, { ref: false });
      await Promise.race([this.ready.catch(() => undefined), late]);
    }
    return this.hasAgent && !this.link.closed;
  }

  /** Waits for calls that cannot be made again, as long as it is worth it. */
  async quiet(timeoutMs: number): Promise<void> {
    const end = performance.now() + timeoutMs;
    const waits = (): boolean => [...this.#pending.values()].some((call) => !isRepeatable(call));
    while (waits() && performance.now() < end) await sleep(QUIET_POLL_MS);
  }

  /** What its guest waits for, while it is held: for whoever has it next. */
  handOver(): ChannelState {
    const calls = [...this.#pending].map(([id, call]) => ({ id, ...call }));
    return {
      calls: calls.filter(isRepeatable).map(({ id, line }) => ({ id, line })),
      cut: calls.filter((call) => !call.replied && !isRepeatable(call)).map(({ id }) => id),
      cutData: calls.filter(({ replied }) => replied).map(({ id }) => id),
      queued: this.link.heldFrames.toString('base64'),
      ...this.exec.handOver(),
    };
  }

  /** From the host that had it; `exec` has its part before the guest's first instruction. */
  takeOver({ calls, cut, cutData, queued }: ChannelState): void {
    this.hasAgent = true;
    this.#ready.resolve();
    this.link.sendFrames(Buffer.from(queued, 'base64'));
    for (const id of cut)
      this.link.reply(id, 'err interrupted this VM was migrated meanwhile; it may have happened, ask again');
    for (const id of cutData) this.link.send({ type: GuestFrameType.replyData, id });
    for (const { id, line } of calls) void this.#answer({ id, payload: Buffer.from(line) });
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
        this.hasAgent = true;
        this.#ready.resolve();
        return;
      case GuestFrameType.call:
        this.firstCallAtMs ??= monotonicMs();
        this.#spoken.resolve();
        void this.#answer(frame);
        return;
      case GuestFrameType.cancel:
        this.#pending.get(frame.id)?.cancel();
        return;
      case GuestFrameType.execOut:
      case GuestFrameType.execExit:
      case GuestFrameType.execCredit:
        this.#spoken.resolve();
        this.exec.fromGuest(frame);
        return;
      case GuestFrameType.held:
      case GuestFrameType.settled:
        return; // AgentLink waits for them
      case GuestFrameType.callData:
        this.#pending.get(frame.id)?.bytes?.push(frame.payload);
        return;
      case GuestFrameType.callCredit:
        if (frame.payload.length === 4)
          this.#pending.get(frame.id)?.reply.grant(frame.payload.readUInt32LE(0));
        return;
      case GuestFrameType.reply:
      case GuestFrameType.hold:
      case GuestFrameType.identity:
      case GuestFrameType.execStart:
      case GuestFrameType.execIn:
      case GuestFrameType.execSignal:
      case GuestFrameType.replyData:
        return; // a guest has no business sending these; they mean nothing
      default:
        frame.type satisfies never;
    }
  }

  async #answer(frame: Pick<GuestFrame, 'id' | 'payload'>): Promise<void> {
    if (this.#pending.size >= PENDING_CALLS_MAX || this.#pending.has(frame.id)) {
      this.link.reply(frame.id, `err unavailable more than ${PENDING_CALLS_MAX} calls wait already`);
      return;
    }
    const line = frame.payload.toString('utf8');
    const call = this.#open(frame.id, line);
    this.#pending.set(frame.id, call);
    try {
      const { signal, bytes } = call;
      await this.#admitted;
      const { text, bytes: following } = await this.#calls.answer(line, { callId: frame.id, signal, bytes });
      call.replied = true;
      if (!this.link.closed && !signal.aborted) this.link.reply(frame.id, text);
      if (following) await call.reply.sendAll(following);
    } catch {
      await this.#breakOff(frame.id, call.signal);
    } finally {
      this.#pending.delete(frame.id);
    }
  }

  /** The rest of a reply cannot be had. */
  async #breakOff(id: number, caller: AbortSignal): Promise<void> {
    while (!this.link.closed && !caller.aborted) {
      try {
        return this.link.send({ type: GuestFrameType.replyData, id });
      } catch {
        await sleep(BUSY_PAUSE_MS); // too much waits for it while it forks
      }
    }
  }

  #open(id: number, line: string): PendingCall {
    const announced = announcedBytes(line);
    const abort = new AbortController();
    const grant = (bytes: number): void => {
      const payload = Buffer.alloc(4);
      payload.writeUInt32LE(bytes);
      if (!this.link.closed) this.link.send({ type: GuestFrameType.callCredit, id, payload });
    };
    const bytes = announced === 0 ? null : new IncomingBytes(announced, grant);
    const send = (payload: Buffer): void => this.link.send({ type: GuestFrameType.replyData, id, payload });
    return {
      ...{ line, replied: false },
      signal: abort.signal,
      bytes,
      reply: new OutgoingBytes(send, abort.signal),
      cancel: () => {
        abort.abort();
        bytes?.fail(new SnowflockError('interrupted', 'whoever called is gone'));
      },
    };
  }
}

function isRepeatable({ line, bytes, replied }: Pick<PendingCall, 'line' | 'bytes' | 'replied'>): boolean {
  return !replied && bytes === null && REPEATABLE.has(line.split(' ', 1)[0] ?? '');
}

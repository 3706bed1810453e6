// What a guest may ask for: one line of text (docs/guest-channel.md), answered by sfmd on behalf of exactly this VM.
// The cluster and vmid come from the channel that the line arrived on, never from the line.
// A call survives a restart of sfmd: it is asked again (ask-master.ts).

import { randomUUID } from 'node:crypto';
import {
  formatVmRef,
  NoReply,
  SnowflockError,
  TicketGrant,
  TicketInfo,
  TicketList,
  TicketRequest,
  ticketId,
  toSnowflockError,
  type ControlClient,
  type ControlRequest,
  type ErrorCode,
  type VmRef,
} from '@snowflock/protocol';
import { askMaster } from './ask-master.ts';
import type { IncomingBytes } from './call-bytes.ts';
import { statusWord, waitClones, waitWords, type GuestReply, type WaitFor } from './guest-results.ts';

/** What sfmd answers from what it knows. */
const ANSWER_TIMEOUT_MS = 10_000;
/** What it first has hosts do. */
const CALL_TIMEOUT_MS = 30_000;
/** A clone that cannot be reset in its QEMU gets a new one, and fetches its pages again. */
const RESET_TIMEOUT_MS = 120_000;
/** Blocking calls wait for other users' resources or for computations: days. */
const BLOCKING_TIMEOUT_MS = 7 * 24 * 3600 * 1000;
/** Error text that fits into a reply frame with room to spare. */
const MESSAGE_MAX = 2_000;

export interface GuestCallHandlers {
  readonly vm: VmRef;
  readonly masterDaemon: ControlClient;
  /** Forks; resolves to how many clones run. */
  readonly cloneMaster: (ticket: string, callId: number) => Promise<number>;
  /** Destroys this VM. Clone only. */
  readonly exit: (call: ExitCall) => Promise<void>;
  /** Of the clones that this VM forked. */
  readonly results: WaitFor['results'];
  readonly host: string;
  readonly onError: (code: ErrorCode) => void;
}

/** A call as it comes from the guest. */
export interface GuestCall {
  readonly callId: number;
  /** Its caller is gone. */
  readonly signal: AbortSignal;
  /** That follow its line. */
  readonly bytes: IncomingBytes | null;
}

export interface ExitCall {
  readonly status: number;
  /** Of its result. */
  readonly bytes: IncomingBytes | null;
  readonly signal: AbortSignal;
}

function integer(word: string | undefined, name: string): number {
  if (word === undefined || !/^-?\d{1,9}$/.test(word))
    throw new SnowflockError('bad-request', `${name} must be a whole number, got '${word ?? ''}'`);
  return Number(word);
}

function flag(word: string | undefined, name: string): boolean {
  const value = integer(word, name);
  if (value !== 0 && value !== 1)
    throw new SnowflockError('bad-request', `${name} must be 0 or 1, got ${value}`);
  return value === 1;
}

function ticketWord(word: string | undefined): string {
  const parsed = ticketId.safeParse(word);
  if (!parsed.success) throw new SnowflockError('no-such-ticket', `'${word ?? ''}' is not a ticket`);
  return parsed.data;
}

export class GuestCalls {
  readonly #to: GuestCallHandlers;

  constructor(handlers: GuestCallHandlers) {
    this.#to = handlers;
  }

  /** The reply to a call; never rejects. */
  async answer(line: string, call: GuestCall): Promise<GuestReply> {
    try {
      const reply = await this.#dispatch(line, call);
      return typeof reply === 'string' ? { text: reply } : reply;
    } catch (thrown) {
      const error = toSnowflockError(thrown);
      this.#to.onError(error.code);
      const message = error.message.replace(/[\s\p{Cc}]+/gu, ' ').slice(0, MESSAGE_MAX);
      return { text: `err ${error.code} ${message}` };
    }
  }

  async #dispatch(line: string, { callId, signal, bytes }: GuestCall): Promise<string | GuestReply> {
    const [verb = '', ...words] = line.trim().split(' ');
    if (bytes && verb !== 'ic_exit')
      throw new SnowflockError('bad-request', `no bytes may follow a call of ${verb.slice(0, 40)}`);
    const { clusterid, vmid } = this.#to.vm;
    const cluster = `/v1/clusters/${clusterid}`;
    // Who asks, for sfmd: a VM may only use its own tickets.
    const as = `?vm=${vmid}`;
    switch (verb) {
      case 'request_clone_ticket':
        return this.#requestTicket(words, signal);
      case 'list_tickets': {
        const list = await this.#ask({
          method: 'GET',
          path: `${cluster}/tickets${as}`,
          reply: TicketList,
          signal,
          timeoutMs: ANSWER_TIMEOUT_MS,
        });
        return ['ok', 'unused', ...list.unused, 'outstanding', ...list.outstanding].join(' ');
      }
      case 'read_ticket_info': {
        const path = `${cluster}/tickets/${ticketWord(words[0])}${as}`;
        const timeoutMs = ANSWER_TIMEOUT_MS;
        const info = await this.#ask({ method: 'GET', path, reply: TicketInfo, signal, timeoutMs });
        return ['ok', info.ticket, ...info.clones.map((clone) => `${clone.vmid}:${clone.processors}`)].join(
          ' ',
        );
      }
      case 'dispose_ticket':
        await this.#ask({
          method: 'DELETE',
          path: `${cluster}/tickets/${ticketWord(words[0])}${as}`,
          reply: NoReply,
          signal,
          done: ['ticket-disposed'],
        });
        return 'ok';
      case 'clone_master':
        // The seed policy is the agent's affair, who tells it to the clone's hooks.
        if (words[1] !== undefined && words[1] !== 'same')
          throw new SnowflockError(
            'bad-request',
            `after the ticket may come 'same', not '${words[1].slice(0, 40)}'`,
          );
        return `ok ${await this.#to.cloneMaster(ticketWord(words[0]), callId)} ${vmid}`;
      case 'merge_master':
      case 'ic_kill': {
        const which = words[0] === '*' ? '' : `/tickets/${ticketWord(words[0])}`;
        await this.#ask({ method: 'POST', path: `${cluster}${which}/merge${as}`, reply: NoReply, signal });
        return 'ok';
      }
      case 'ic_join': {
        const path = `${cluster}/tickets/${ticketWord(words[0])}/join${as}`;
        await this.#ask({ method: 'POST', path, reply: NoReply, signal, timeoutMs: BLOCKING_TIMEOUT_MS });
        return 'ok';
      }
      case 'reset_clone': {
        const which = integer(words[0], 'vmid');
        if (which < 0) throw new SnowflockError('bad-request', `vmid must be 0 or more, got ${which}`);
        const path = `${cluster}/vms/${which}/reset${as}`;
        await this.#ask({ method: 'POST', path, reply: NoReply, signal, timeoutMs: RESET_TIMEOUT_MS });
        return 'ok';
      }
      case 'ic_exit':
        if (this.#to.vm.vmid === 0)
          throw new SnowflockError(
            'not-clone',
            'ic_exit ends a clone; this is the master VM, use shutdown_cluster',
          );
        if (words.length > (bytes ? 2 : 1) || (bytes && words.length < 2))
          throw new SnowflockError('bad-request', 'ic_exit takes STATUS, and +BYTES for a result');
        await this.#to.exit({ status: statusWord(words[0]), bytes, signal });
        return 'ok';
      case 'wait_clones': {
        const [ticket, ...limits] = words;
        const options = { signal, timeoutMs: BLOCKING_TIMEOUT_MS };
        return waitClones(this.#to, ticketWord(ticket), waitWords(limits), options);
      }
      case 'shutdown_cluster':
        if (vmid !== 0)
          throw new SnowflockError(
            'not-master',
            `${verb} may only be called in the master VM; this is ${formatVmRef(this.#to.vm)}`,
          );
        await this.#ask({
          method: 'DELETE',
          path: `${cluster}?by=guest`,
          reply: NoReply,
          signal,
          done: ['no-such-cluster'],
        });
        return 'ok';
      default:
        throw new SnowflockError('bad-request', `unknown call '${verb.slice(0, 40)}'`);
    }
  }

  async #requestTicket(words: string[], signal: AbortSignal): Promise<string> {
    const parsed = TicketRequest.safeParse({
      nclones: integer(words[0], 'nclones'),
      procs: flag(words[1], 'procs'),
      min: Math.max(-1, integer(words[2], 'min')),
      block: flag(words[3], 'block'),
      // By which the same request is known again when it comes once more, from a guest whose link was lost.
      requestId: words[4] ?? randomUUID(),
    });
    if (!parsed.success) {
      const issue = parsed.error.issues[0];
      throw new SnowflockError(
        'bad-request',
        `${issue?.path.join('.') ?? 'request'}: ${issue?.message ?? 'is wrong'}`,
      );
    }
    const grant = await this.#ask({
      method: 'POST',
      path: `/v1/clusters/${this.#to.vm.clusterid}/tickets?vm=${this.#to.vm.vmid}`,
      body: parsed.data,
      reply: TicketGrant,
      signal,
      timeoutMs: parsed.data.block ? BLOCKING_TIMEOUT_MS : ANSWER_TIMEOUT_MS,
    });
    return `ok ${grant.allowed} ${grant.ticket ?? '-'}`;
  }

  #ask<T>({
    done = [],
    ...request
  }: Omit<ControlRequest<T>, 'timeoutMs'> & {
    readonly timeoutMs?: number;
    readonly done?: readonly ErrorCode[];
  }): Promise<T> {
    return askMaster(this.#to.masterDaemon, { timeoutMs: CALL_TIMEOUT_MS, ...request }, { done });
  }
}

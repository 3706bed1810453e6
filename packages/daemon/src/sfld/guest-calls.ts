// What a guest may ask for: one line of text (docs/guest-channel.md), answered by sfmd on behalf of exactly this VM.
// The cluster and vmid come from the channel that the line arrived on, never from the line.

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
  type VmRef,
} from '@snowflock/protocol';

/** What sfmd answers from what it knows. */
const ANSWER_TIMEOUT_MS = 10_000;
/** What it first has hosts do. */
const CALL_TIMEOUT_MS = 30_000;
/** Blocking calls wait for other users' resources or for computations: days. */
const BLOCKING_TIMEOUT_MS = 7 * 24 * 3600 * 1000;
/** Error text that fits into a reply frame with room to spare. */
const MESSAGE_MAX = 2_000;

export interface GuestCallHandlers {
  readonly vm: VmRef;
  readonly masterDaemon: ControlClient;
  /** Forks; resolves to how many clones run. Master VM only. */
  readonly cloneMaster: (ticket: string, callId: number) => Promise<number>;
  /** Destroys this VM. Clone only. */
  readonly exit: () => Promise<void>;
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

  /** The reply line to a call line; never rejects. */
  async answer(line: string, call: { callId: number; signal: AbortSignal }): Promise<string> {
    try {
      return await this.#dispatch(line, call);
    } catch (thrown) {
      const error = toSnowflockError(thrown);
      return `err ${error.code} ${error.message.replace(/\s+/g, ' ').slice(0, MESSAGE_MAX)}`;
    }
  }

  async #dispatch(
    line: string,
    { callId, signal }: { callId: number; signal: AbortSignal },
  ): Promise<string> {
    const [verb = '', ...words] = line.trim().split(' ');
    const cluster = `/v1/clusters/${this.#to.vm.clusterid}`;
    switch (verb) {
      case 'request_clone_ticket':
        return this.#requestTicket(words, signal);
      case 'list_tickets': {
        this.#masterOnly(verb);
        const list = await this.#ask({
          method: 'GET',
          path: `${cluster}/tickets`,
          reply: TicketList,
          signal,
          timeoutMs: ANSWER_TIMEOUT_MS,
        });
        return ['ok', 'unused', ...list.unused, 'outstanding', ...list.outstanding].join(' ');
      }
      case 'read_ticket_info': {
        const path = `${cluster}/tickets/${ticketWord(words[0])}`;
        const timeoutMs = ANSWER_TIMEOUT_MS;
        const info = await this.#ask({ method: 'GET', path, reply: TicketInfo, signal, timeoutMs });
        return ['ok', info.ticket, ...info.clones.map((clone) => `${clone.vmid}:${clone.processors}`)].join(
          ' ',
        );
      }
      case 'dispose_ticket':
        this.#masterOnly(verb);
        await this.#ask({
          method: 'DELETE',
          path: `${cluster}/tickets/${ticketWord(words[0])}`,
          reply: NoReply,
          signal,
        });
        return 'ok';
      case 'clone_master':
        this.#masterOnly(verb);
        return `ok ${await this.#to.cloneMaster(ticketWord(words[0]), callId)} 0`;
      case 'merge_master':
      case 'ic_kill': {
        this.#masterOnly(verb);
        const path =
          words[0] === '*' ? `${cluster}/merge` : `${cluster}/tickets/${ticketWord(words[0])}/merge`;
        await this.#ask({ method: 'POST', path, reply: NoReply, signal });
        return 'ok';
      }
      case 'ic_join': {
        this.#masterOnly(verb);
        const path = `${cluster}/tickets/${ticketWord(words[0])}/join`;
        await this.#ask({ method: 'POST', path, reply: NoReply, signal, timeoutMs: BLOCKING_TIMEOUT_MS });
        return 'ok';
      }
      case 'ic_exit':
        if (this.#to.vm.vmid === 0)
          throw new SnowflockError(
            'not-clone',
            'ic_exit ends a clone; this is the master VM, use shutdown_cluster',
          );
        await this.#to.exit();
        return 'ok';
      case 'shutdown_cluster':
        this.#masterOnly(verb);
        await this.#ask({ method: 'DELETE', path: `${cluster}?by=guest`, reply: NoReply, signal });
        return 'ok';
      default:
        throw new SnowflockError('bad-request', `unknown call '${verb.slice(0, 40)}'`);
    }
  }

  async #requestTicket(words: string[], signal: AbortSignal): Promise<string> {
    this.#masterOnly('request_clone_ticket');
    const parsed = TicketRequest.safeParse({
      nclones: integer(words[0], 'nclones'),
      procs: flag(words[1], 'procs'),
      min: Math.max(-1, integer(words[2], 'min')),
      block: flag(words[3], 'block'),
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
      path: `/v1/clusters/${this.#to.vm.clusterid}/tickets`,
      body: parsed.data,
      reply: TicketGrant,
      signal,
      timeoutMs: parsed.data.block ? BLOCKING_TIMEOUT_MS : ANSWER_TIMEOUT_MS,
    });
    return `ok ${grant.allowed} ${grant.ticket ?? '-'}`;
  }

  #masterOnly(verb: string): void {
    if (this.#to.vm.vmid !== 0)
      throw new SnowflockError(
        'not-master',
        `${verb} may only be called in the master VM; this is ${formatVmRef(this.#to.vm)}`,
      );
  }

  #ask<T>(request: Omit<ControlRequest<T>, 'timeoutMs'> & { readonly timeoutMs?: number }): Promise<T> {
    return this.#to.masterDaemon.request({ timeoutMs: CALL_TIMEOUT_MS, ...request });
  }
}

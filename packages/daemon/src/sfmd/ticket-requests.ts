// Ticket requests whose callers wait for an answer: from the command to the grant, or to the caller's going away.

import { randomUUID } from 'node:crypto';
import { SnowflockError, type TicketGrant, type TicketRequest } from '@snowflock/protocol';
import type { Command } from '@snowflock/cluster';
import type { Caller } from '../http-routes.ts';
import { Undelivered } from './undelivered.ts';
import { abortError, stillThere } from './waiters.ts';

export interface TicketRequestPorts {
  readonly apply: (command: Command) => void;
  /** Applies a command that may come too late. */
  readonly undo: (command: Command) => void;
}

interface Ask extends PromiseWithResolvers<TicketGrant> {
  grant: TicketGrant | null;
}

export class TicketRequests implements Disposable {
  readonly #ports: TicketRequestPorts;
  readonly #asks = new Map<string, Ask>();
  readonly #undelivered = new Undelivered();

  constructor(ports: TicketRequestPorts) {
    this.#ports = ports;
  }

  /** `by`: vmid of the VM that asks. */
  async ask(options: {
    clusterid: number;
    by?: number | undefined;
    request: TicketRequest;
    caller: Caller;
  }): Promise<TicketGrant> {
    const { clusterid, by, caller } = options;
    const { requestId: given, ...request } = options.request;
    await stillThere(caller.signal);
    const requestId = given ?? randomUUID();
    const ask: Ask = { ...Promise.withResolvers<TicketGrant>(), grant: null };
    ask.promise.catch(() => undefined); // its caller may have left
    this.#asks
      .get(requestId)
      ?.reject(
        new SnowflockError('interrupted', `request ${requestId} was asked again on another connection`),
      );
    this.#asks.set(requestId, ask);
    const forget = (): boolean => this.#asks.get(requestId) === ask && this.#asks.delete(requestId);
    try {
      this.#ports.apply({ type: 'request-ticket', clusterid, by, requestId, request });
    } catch (error) {
      forget();
      throw error;
    }
    this.#undelivered.expect({
      id: given ?? null,
      caller,
      undo: () => {
        if (!forget()) return;
        const ticket = ask.grant?.ticket ?? null;
        if (ticket !== null) this.#ports.undo({ type: 'dispose', clusterid, ticket });
        else if (ask.grant === null) this.#ports.undo({ type: 'cancel-request', requestId });
      },
    });
    const onAbort = (): void => ask.reject(abortError(caller.signal));
    if (caller.signal.aborted) onAbort();
    caller.signal.addEventListener('abort', onAbort, { once: true });
    caller.onAnswered(() => {
      const ticket = ask.grant?.ticket ?? null;
      if (forget() && ticket !== null) this.#ports.undo({ type: 'delivered', clusterid, ticket });
    });
    return ask.promise;
  }

  granted(requestId: string, grant: TicketGrant): void {
    const ask = this.#asks.get(requestId);
    if (!ask) return;
    ask.grant = grant;
    ask.resolve(grant);
  }

  refused(requestId: string, error: SnowflockError): void {
    this.#asks.get(requestId)?.reject(error);
    this.#asks.delete(requestId);
  }

  /** Nobody will be granted anything any more. */
  stop(error: SnowflockError): void {
    for (const ask of this.#asks.values()) ask.reject(error);
    this[Symbol.dispose]();
  }

  [Symbol.dispose](): void {
    this.#undelivered[Symbol.dispose]();
  }
}

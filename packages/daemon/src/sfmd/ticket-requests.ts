// Ticket requests whose callers wait for an answer: from the command to the grant, or to the caller's going away.

import { randomUUID } from 'node:crypto';
import type { SnowflockError, TicketGrant, TicketRequest } from '@snowflock/protocol';
import type { Command } from '@snowflock/cluster';
import { abortError, stillThere, undoUnlessDelivered } from './waiters.ts';

export interface TicketRequestPorts {
  readonly apply: (command: Command) => void;
  /** Applies a command that may come too late. */
  readonly undo: (command: Command) => void;
}

export class TicketRequests {
  readonly #ports: TicketRequestPorts;
  readonly #answers = new Map<string, PromiseWithResolvers<TicketGrant>>();

  constructor(ports: TicketRequestPorts) {
    this.#ports = ports;
  }

  async ask(options: {
    clusterid: number;
    request: TicketRequest;
    signal: AbortSignal;
  }): Promise<TicketGrant> {
    const { clusterid, request, signal } = options;
    await stillThere(signal);
    const requestId = randomUUID();
    const answer = Promise.withResolvers<TicketGrant>();
    const onAbort = (): void => {
      this.#ports.undo({ type: 'cancel-request', requestId });
      answer.reject(abortError(signal));
    };
    this.#answers.set(requestId, answer);
    try {
      this.#ports.apply({ type: 'request-ticket', clusterid, requestId, request });
      if (signal.aborted) onAbort();
      signal.addEventListener('abort', onAbort, { once: true });
      const grant = await answer.promise;
      const { ticket } = grant;
      if (ticket !== null)
        undoUnlessDelivered(signal, () => this.#ports.undo({ type: 'dispose', clusterid, ticket }));
      return grant;
    } finally {
      signal.removeEventListener('abort', onAbort);
      this.#answers.delete(requestId);
    }
  }

  granted(requestId: string, grant: TicketGrant): void {
    this.#answers.get(requestId)?.resolve(grant);
  }

  refused(requestId: string, error: SnowflockError): void {
    this.#answers.get(requestId)?.reject(error);
  }

  /** Nobody will be granted anything any more. */
  stop(error: SnowflockError): void {
    for (const answer of this.#answers.values()) answer.reject(error);
  }
}

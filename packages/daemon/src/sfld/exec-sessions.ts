// Exec sessions of one VM: clients on one side, the guest channel on the other. Both speak the exec frames of docs/guest-channel.md; a
// session's id is the client's choice there and ours in the guest.
//
// Invariants: while the channel is held no client is read. So when the VM goes to another host, all that its clients have said is either in
// the guest, or among the frames that go along, or still unread, and comes there with them (client-relay.ts). What the guest sends there from
// its first instruction on is kept for them.

import { randomUUID } from 'node:crypto';
import type { Duplex } from 'node:stream';
import { GuestFrameType, SnowflockError, type ChannelState, type GuestFrame } from '@snowflock/protocol';
import type { AgentLink } from '@snowflock/vm';
import { EXPECTED_TIMEOUT_MS, type LetGo } from './client-relay.ts';
import { ExecClient, type ExecClientHandlers } from './exec-client.ts';

/** Sent to the command's process group when its client goes away. */
const SIGHUP = 1;

interface Session {
  readonly client: ExecClient;
  readonly clientId: number;
  /** Its client. */
  gone: boolean;
}

export class ExecSessions {
  readonly #link: AgentLink;
  readonly #clients = new Set<ExecClient>();
  readonly #sessions = new Map<number, Session>();
  #nextId = 1;
  /** Set when the guest runs elsewhere. */
  #relay: ((client: LetGo) => void) | null = null;

  constructor(link: AgentLink) {
    this.#link = link;
    link.on('hold', () => {
      for (const client of this.#clients) client.pause();
    });
    link.on('release', () => {
      for (const client of this.#clients) client.resume();
    });
  }

  /** Throws 'interrupted' unless a client is expected with this token. */
  assertExpected(token: string): void {
    if (!this.#expected(token))
      throw new SnowflockError(
        'interrupted',
        'the commands of this client are not known here any more; start them again',
      );
  }

  /** Serves one client connection until it closes; it may run commands one after another or at once. `token`: of an expected client. */
  serve(connection: Duplex, token: string | null = null): void {
    if (this.#relay) return this.#relay({ connection, rest: Buffer.alloc(0), token: null });
    const client = (token !== null && this.#expected(token)) || new ExecClient(this.#handlers);
    this.#clients.add(client);
    client.serve(connection);
    if (this.#link.isHeld) client.pause();
  }

  fromGuest(frame: GuestFrame): void {
    const session = this.#sessions.get(frame.id);
    if (!session || session.gone) {
      // Nobody reads it, but the command must not block on its output: before the signal reaches it, or where it came along from another host.
      if (frame.type === GuestFrameType.execOut && frame.payload.length > 1) {
        const credit = Buffer.alloc(4);
        credit.writeUInt32LE(frame.payload.length - 1);
        this.#link.send({ type: GuestFrameType.execCredit, id: frame.id, payload: credit });
      }
      if (!session) return;
    } else {
      session.client.send({ type: frame.type, id: session.clientId, payload: frame.payload });
    }
    if (frame.type === GuestFrameType.execExit) this.#forget(frame.id, session);
  }

  /** For the host that has the guest next; while the channel is held. */
  handOver(): Pick<ChannelState, 'execIds' | 'execClients'> {
    const execClients: ChannelState['execClients'] = [];
    for (const client of this.#clients) {
      if (client.isExpected) continue;
      client.token = client.ids.size > 0 ? randomUUID() : null; // without a command it may as well come as a new one
      if (client.token !== null) execClients.push({ token: client.token, sessions: [...client.ids] });
    }
    return { execIds: this.#nextId - 1, execClients };
  }

  /** Before the guest's first instruction here: what the host that had it has handed over. */
  expect({ execIds, execClients }: Pick<ChannelState, 'execIds' | 'execClients'>): void {
    this.#nextId = execIds + 1;
    for (const { token, sessions } of execClients) {
      const client = new ExecClient(this.#handlers, { token, ids: sessions });
      this.#clients.add(client);
      for (const [clientId, id] of sessions) this.#sessions.set(id, { client, clientId, gone: false });
      setTimeout(() => client.isExpected && client.end(), EXPECTED_TIMEOUT_MS).unref();
    }
  }

  /** The guest runs elsewhere: `relay` gets each client that there is, or comes yet. */
  letGo(relay: (client: LetGo) => void): void {
    this.#relay = relay;
    for (const client of this.#clients) {
      const left = client.letGo();
      if (left) relay(left);
    }
    this.#clients.clear();
    this.#sessions.clear();
  }

  closeAll(): void {
    for (const client of this.#clients) client.end();
    this.#sessions.clear();
  }

  get #handlers(): ExecClientHandlers {
    return {
      onFrame: (client, frame) => this.#fromClient(client, frame),
      onGone: (client) => {
        this.#clients.delete(client);
        for (const id of client.ids.values()) this.#abandon(id);
      },
    };
  }

  #expected(token: string): ExecClient | undefined {
    return [...this.#clients].find((client) => client.isExpected && client.token === token);
  }

  #fromClient(client: ExecClient, frame: GuestFrame): void {
    if (frame.type === GuestFrameType.execStart) {
      const id = this.#nextId++;
      client.ids.set(frame.id, id);
      this.#sessions.set(id, { client, clientId: frame.id, gone: false });
      this.#link.send({ type: frame.type, id, payload: frame.payload });
      return;
    }
    const id = client.ids.get(frame.id);
    const allowed =
      frame.type === GuestFrameType.execIn ||
      frame.type === GuestFrameType.execSignal ||
      frame.type === GuestFrameType.execCredit;
    if (id !== undefined && allowed && this.#sessions.has(id))
      this.#link.send({ type: frame.type, id, payload: frame.payload });
  }

  /** The command has ended. */
  #forget(id: number, { client, clientId }: Session): void {
    this.#sessions.delete(id);
    if (client.ids.get(clientId) === id) client.ids.delete(clientId);
  }

  #abandon(id: number): void {
    const session = this.#sessions.get(id);
    if (!session || this.#link.closed) return;
    session.gone = true;
    this.#link.send({ type: GuestFrameType.execSignal, id, payload: Buffer.from([SIGHUP]) });
    this.#link.send({ type: GuestFrameType.execIn, id });
  }
}

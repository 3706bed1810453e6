// Exec sessions of one VM: a client's framed connection on one side, the guest channel on the other. Both speak the exec
// frames of docs/guest-channel.md; a session's id is the client's choice there and ours in the guest.

import type { Duplex } from 'node:stream';
import { encodeGuestFrame, GuestFrameDecoder, GuestFrameType, type GuestFrame } from '@snowflock/protocol';
import type { AgentLink } from '@snowflock/vm';

/** Sent to the command's process group when its client goes away. */
const SIGHUP = 1;

interface Session {
  readonly client: Duplex;
  readonly clientId: number;
  gone: boolean;
}

export class ExecSessions {
  readonly #link: AgentLink;
  readonly #sessions = new Map<number, Session>();
  #nextId = 1;

  constructor(link: AgentLink) {
    this.#link = link;
  }

  /** Ids that the guest may know. */
  get usedIds(): number {
    return this.#nextId - 1;
  }

  set usedIds(used: number) {
    this.#nextId = used + 1;
  }

  /** Serves one client connection until it closes; it may run commands one after another or at once. */
  serve(client: Duplex): void {
    const decoder = new GuestFrameDecoder();
    const own = new Map<number, number>();
    client.on('data', (chunk: Buffer) => {
      try {
        for (const frame of decoder.push(chunk)) this.#fromClient(client, own, frame);
      } catch (error) {
        client.destroy(error instanceof Error ? error : undefined);
      }
    });
    client.on('error', () => client.destroy());
    // Connections of an HTTP server stay half open by themselves; a client that says no more has gone.
    client.on('end', () => client.destroy());
    client.on('close', () => {
      for (const id of own.values()) this.#abandon(id);
    });
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
      session.client.write(
        encodeGuestFrame({ type: frame.type, id: session.clientId, payload: frame.payload }),
      );
    }
    if (frame.type === GuestFrameType.execExit) this.#sessions.delete(frame.id);
  }

  closeAll(): void {
    for (const session of this.#sessions.values()) session.client.destroy();
    this.#sessions.clear();
  }

  #fromClient(client: Duplex, own: Map<number, number>, frame: GuestFrame): void {
    if (frame.type === GuestFrameType.execStart) {
      const id = this.#nextId++;
      own.set(frame.id, id);
      this.#sessions.set(id, { client, clientId: frame.id, gone: false });
      this.#link.send({ type: frame.type, id, payload: frame.payload });
      return;
    }
    const id = own.get(frame.id);
    const allowed =
      frame.type === GuestFrameType.execIn ||
      frame.type === GuestFrameType.execSignal ||
      frame.type === GuestFrameType.execCredit;
    if (id !== undefined && allowed && this.#sessions.has(id))
      this.#link.send({ type: frame.type, id, payload: frame.payload });
  }

  #abandon(id: number): void {
    const session = this.#sessions.get(id);
    if (!session || this.#link.closed) return;
    session.gone = true;
    this.#link.send({ type: GuestFrameType.execSignal, id, payload: Buffer.from([SIGHUP]) });
    this.#link.send({ type: GuestFrameType.execIn, id });
  }
}

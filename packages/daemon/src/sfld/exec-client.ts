// One client of exec sessions: the connection that its frames come on, and what its sessions are called.
//
//   expected ──serve──▶ served ──letGo──▶ its connection is somebody else's
//       └──────────────────┴──end, or the connection closes──▶ gone
//
// Expected is one that has yet to come from the host that the VM was on: what the guest sends it meanwhile is kept.

import assert from 'node:assert/strict';
import type { Duplex } from 'node:stream';
import { encodeGuestFrame, GuestFrameDecoder, type GuestFrame } from '@snowflock/protocol';
import type { LetGo } from './client-relay.ts';

/** A guest sends as much as it was granted (EXEC_WINDOW_BYTES a session); one that sends more is not waited for. */
const KEPT_MAX_BYTES = 8 << 20;

export interface ExecClientHandlers {
  readonly onFrame: (client: ExecClient, frame: GuestFrame) => void;
  /** Called once. */
  readonly onGone: (client: ExecClient) => void;
}

export class ExecClient {
  /** Its sessions: the ids that the guest knows, by its own. */
  readonly ids: Map<number, number>;
  /** What it is expected under on the host that has the VM next; while it is expected, here. */
  token: string | null;
  readonly #handlers: ExecClientHandlers;
  readonly #decoder = new GuestFrameDecoder();
  #connection: Duplex | null = null;
  #kept: Buffer[] = [];
  #keptBytes = 0;
  #gone = false;

  constructor(
    handlers: ExecClientHandlers,
    expected: { readonly token: string | null; readonly ids: Iterable<readonly [number, number]> } = {
      token: null,
      ids: [],
    },
  ) {
    this.#handlers = handlers;
    this.token = expected.token;
    this.ids = new Map(expected.ids);
  }

  get isExpected(): boolean {
    return this.#connection === null && !this.#gone;
  }

  serve(connection: Duplex): void {
    assert(this.isExpected, 'an exec client has one connection');
    this.#connection = connection;
    this.token = null;
    for (const bytes of this.#kept.splice(0)) connection.write(bytes);
    connection.on('data', this.#onData).on('error', this.#onEnd);
    // Connections of an HTTP server stay half open by themselves; a client that says no more has gone.
    connection.on('end', this.#onEnd).on('close', this.#onClose);
  }

  send(frame: GuestFrame): void {
    const bytes = encodeGuestFrame(frame);
    if (this.#connection) return void this.#connection.write(bytes);
    this.#kept.push(bytes);
    this.#keptBytes += bytes.length;
    if (this.#keptBytes > KEPT_MAX_BYTES) this.end();
  }

  pause(): void {
    this.#connection?.pause();
  }

  resume(): void {
    this.#connection?.resume();
  }

  /** Null: it has no connection. What has been sent to it is on its way, what it sends is left unread. */
  letGo(): LetGo | null {
    const connection = this.#connection;
    if (!connection) return null;
    this.#gone = true;
    this.#connection = null;
    connection.pause();
    connection.off('data', this.#onData).off('error', this.#onEnd);
    connection.off('end', this.#onEnd).off('close', this.#onClose);
    return { connection, rest: this.#decoder.rest, token: this.token };
  }

  end(): void {
    this.#connection?.destroy();
    this.#onClose();
  }

  readonly #onEnd = (): void => this.end();

  readonly #onClose = (): void => {
    if (this.#gone) return;
    this.#gone = true;
    this.#handlers.onGone(this);
  };

  readonly #onData = (chunk: Buffer): void => {
    try {
      for (const frame of this.#decoder.push(chunk)) this.#handlers.onFrame(this, frame);
    } catch {
      this.end(); // it broke the rules, or more of it waits for the guest than is kept
    }
  };
}

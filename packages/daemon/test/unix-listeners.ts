// Unix sockets for a test, below a directory of its own, and their end.

import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import type { Server } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

export class UnixListeners implements AsyncDisposable {
  readonly #directory = mkdtempSync(join(tmpdir(), 'sf-sockets-'));
  readonly #undo = new AsyncDisposableStack();
  #made = 0;

  constructor() {
    this.#undo.defer(() => rmSync(this.#directory, { recursive: true }));
  }

  /** What is undone at the end, the last thing first. */
  defer(cleanup: () => void): void {
    this.#undo.defer(cleanup);
  }

  /** Has the server listen at a new path. */
  async listening(server: Server): Promise<string> {
    const path = join(this.#directory, String(this.#made++));
    server.listen(path);
    await once(server, 'listening');
    this.#undo.defer(() => void server.close());
    return path;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#undo.disposeAsync();
  }
}

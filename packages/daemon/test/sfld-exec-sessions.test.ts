// Clients of exec sessions that go, over sockets as an HTTP server hands them out.

import { once } from 'node:events';
import { mkdtemp, rm } from 'node:fs/promises';
import { connect, createServer, type Server } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { AgentLink } from '@snowflock/vm';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { ExecSessions } from '../src/sfld/exec-sessions.ts';

describe('a client of exec sessions', () => {
  let directory: string;
  const undo = new AsyncDisposableStack();
  beforeEach(async () => {
    directory = await mkdtemp(join(tmpdir(), 'sf-exec-'));
  });
  afterEach(() => rm(directory, { recursive: true }));
  afterEach(() => undo.disposeAsync());

  async function listening(name: string, server: Server): Promise<string> {
    const path = join(directory, name);
    server.listen(path);
    await once(server, 'listening');
    undo.defer(() => void server.close());
    return path;
  }

  it('that goes leaves no connection behind', async () => {
    const guest = await listening(
      'guest',
      createServer((socket) => void socket.resume()),
    );
    const link = await AgentLink.connect(guest, { timeoutMs: 2000, gone: new Promise(() => undefined) });
    undo.defer(() => link.close());
    const sessions = new ExecSessions(link);
    const server = createServer({ allowHalfOpen: true }, (socket) => sessions.serve(socket));
    const path = await listening('sfld', server);
    const client = connect(path);
    await once(client, 'connect');
    const open = (): Promise<number> =>
      new Promise((resolve, reject) =>
        server.getConnections((error, count) => (error ? reject(error) : resolve(count))),
      );
    for (let i = 0; i < 100 && (await open()) === 0; i++) await sleep(10);
    expect(await open()).toBe(1);
    client.destroy();
    for (let i = 0; i < 100 && (await open()) > 0; i++) await sleep(10);
    expect(await open()).toBe(0);
  });
});

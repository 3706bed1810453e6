// How a router is told what to do: HTTP over a unix socket of mode 0600, PUT /settings, and nothing else.

import { chmod, rm } from 'node:fs/promises';
import { createServer, request as httpRequest, type IncomingMessage } from 'node:http';
import { RouterSettings, SnowflockError, toSnowflockError } from '@snowflock/protocol';

/** Settings of the largest whitelist and the most ports, and then some. */
const BODY_MAX_BYTES = 1 << 20;
/** A router runs a few processes for it, one after the other. */
const ANSWER_TIMEOUT_MS = 30_000;
const CONNECTIONS_MAX = 8;

async function readAll(message: IncomingMessage): Promise<string> {
  const parts: Buffer[] = [];
  let bytes = 0;
  for await (const part of message) {
    bytes += (part as Buffer).length;
    if (bytes > BODY_MAX_BYTES) throw new SnowflockError('bad-request', 'the message is too long');
    parts.push(part as Buffer);
  }
  return Buffer.concat(parts).toString();
}

/** Resolves when it listens. The socket file goes with the directory. */
export async function serveSettings(
  path: string,
  apply: (settings: RouterSettings) => Promise<void>,
): Promise<void> {
  const server = createServer((request, response) => {
    void (async () => {
      try {
        await apply(RouterSettings.parse(JSON.parse(await readAll(request))));
        response.writeHead(204).end();
      } catch (thrown) {
        response.writeHead(500).end(toSnowflockError(thrown).message);
      }
    })();
  });
  server.maxConnections = CONNECTIONS_MAX;
  await rm(path, { force: true });
  await new Promise<void>((resolve, reject) => {
    server.once('error', reject).listen(path, resolve);
  });
  await chmod(path, 0o600);
}

/** Resolves when they are in force. Throws 'unavailable' with the router's reason. */
export async function sendSettings(path: string, settings: RouterSettings): Promise<void> {
  const failed = (why: string, cause?: unknown): SnowflockError =>
    new SnowflockError('unavailable', `the router did not take its settings: ${why}`, { cause });
  const signal = AbortSignal.timeout(ANSWER_TIMEOUT_MS);
  const response = await new Promise<IncomingMessage>((resolve, reject) => {
    const options = { socketPath: path, path: '/settings', method: 'PUT', signal, agent: false as const };
    httpRequest(options, resolve)
      .on('error', (error) => reject(failed(error.message, error)))
      .end(JSON.stringify(settings));
  });
  const text = await readAll(response);
  if (response.statusCode !== 204) throw failed(text);
}

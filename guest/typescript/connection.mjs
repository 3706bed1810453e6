// One call on the agent's socket (docs/guest-channel.md): its line, bytes behind it, the answer's line, bytes behind that.
//
//   connecting ─▶ sending ─▶ answered ─▶ closed        the signal aborts, or the agent goes away: closed at once, the call fails

import { once } from 'node:events';
import { open } from 'node:fs/promises';
import { connect } from 'node:net';

const DEFAULT_SOCKET = '/run/snowflock/agent.sock';
const REPLY_MAX_BYTES = 65536 + 2;
const CHUNK_BYTES = 65536;

/** A call failed. `code` is a fixed word such as `no-such-ticket`; the message says what happened and what to do. */
export class SnowflockError extends Error {
  /**
   * @param {string} code
   * @param {string} message
   * @param {ErrorOptions} [options]
   */
  constructor(code, message, options) {
    super(message, options);
    this.name = 'SnowflockError';
    /**
     * The same words as in C and Python.
     * @readonly
     */
    this.code = code;
  }
}

/**
 * Makes a call, with the bytes of `source` behind its line; gives the words of the answer, or what `read` makes of them and of the
 * bytes behind them.
 * @template [T=string[]]
 * @param {(string | number)[]} words
 * @param {AbortSignal | undefined} signal
 * @param {{ source?: Source, read?: (words: string[], reader: Reader) => Promise<T> }} extra
 * @returns {Promise<T>}
 */
export async function exchange(words, signal, { source, read }) {
  if (signal?.aborted) throw interrupted(signal);
  const socket = await connectAgent(signal);
  const onAbort = () => socket.destroy();
  signal?.addEventListener('abort', onAbort, { once: true });
  try {
    const reader = new Reader(socket);
    const line = reader.line();
    let replied = false;
    line.then(
      () => (replied = true),
      () => (replied = true),
    );
    socket.write(`${words.join(' ')}\n`);
    for await (const chunk of source?.chunks ?? []) {
      if (replied) break; // then nobody wants the rest
      if (!socket.write(chunk)) await Promise.race([once(socket, 'drain'), line]);
    }
    const answer = answerWords(await line);
    return read ? await read(answer, reader) : /** @type {T} */ (answer);
  } catch (error) {
    if (signal?.aborted) throw interrupted(signal);
    if (error instanceof SnowflockError) throw error;
    throw new SnowflockError('unavailable', 'the SnowFlock agent closed the connection', { cause: error });
  } finally {
    signal?.removeEventListener('abort', onAbort);
    socket.destroy();
  }
}

/**
 * @param {AbortSignal | undefined} signal
 * @returns {Promise<import('node:net').Socket>}
 */
function connectAgent(signal) {
  const path = process.env['SNOWFLOCK_AGENT_SOCKET'] || DEFAULT_SOCKET;
  return new Promise((resolve, reject) => {
    const socket = connect({ path });
    const onAbort = () => {
      socket.destroy();
      if (signal) reject(interrupted(signal));
    };
    signal?.addEventListener('abort', onAbort, { once: true });
    socket.once('connect', () => {
      signal?.removeEventListener('abort', onAbort);
      resolve(socket);
    });
    socket.on('error', (cause) => {
      signal?.removeEventListener('abort', onAbort);
      const message = `cannot reach the SnowFlock agent at ${path}: ${cause.message}`;
      reject(new SnowflockError('unavailable', message, { cause })); // or nothing, once it was reached
    });
  });
}

/**
 * The words after 'ok'.
 * @param {string} line
 */
function answerWords(line) {
  const [kind, ...rest] = line.split(' ');
  if (kind === 'ok') return rest.filter((word) => word !== '');
  const [code, ...message] = rest;
  if (kind !== 'err' || code === undefined || code === '') throw nonsense();
  throw new SnowflockError(code, message.join(' ') || 'the call failed');
}

/** Lines and bytes of a connection; fails when it ends before. */
export class Reader {
  /** @param {import('node:net').Socket} socket */
  constructor(socket) {
    /** @type {AsyncIterator<Buffer>} */
    this.chunks = socket[Symbol.asyncIterator]();
    /** @type {Buffer} */
    this.pending = Buffer.alloc(0);
  }

  /**
   * Without its newline.
   * @returns {Promise<string>}
   */
  async line() {
    for (;;) {
      const end = this.pending.indexOf(10);
      if (end >= 0) return (await this.bytes(end + 1)).toString('utf8', 0, end);
      if (this.pending.length >= REPLY_MAX_BYTES) throw new Error('a line without an end');
      this.pending = Buffer.concat([this.pending, await this.next()]);
    }
  }

  /**
   * @param {number} sizeBytes
   * @returns {Promise<Buffer>}
   */
  async bytes(sizeBytes) {
    const parts = [this.pending];
    let have = this.pending.length;
    for (; have < sizeBytes; have += parts.at(-1)?.length ?? 0) parts.push(await this.next());
    const all = parts.length === 1 ? this.pending : Buffer.concat(parts);
    this.pending = all.subarray(sizeBytes);
    return all.subarray(0, sizeBytes);
  }

  async next() {
    const next = await this.chunks.next();
    if (next.done) throw new Error('the connection ended');
    return next.value;
  }
}

/**
 * @typedef {object} Source Bytes to be sent.
 * @property {number} sizeBytes
 * @property {AsyncIterable<Uint8Array> | Iterable<Uint8Array>} chunks
 * @property {() => Promise<void>} close
 */

/**
 * @param {unknown} bytes
 * @returns {Source}
 */
export function bytesSource(bytes = new Uint8Array()) {
  if (!(bytes instanceof Uint8Array))
    throw new SnowflockError('bad-request', `result must be a Uint8Array, not ${shown(bytes)}`);
  /** @param {Uint8Array} all */
  const chunks = function* (all) {
    for (let at = 0; at < all.length; at += CHUNK_BYTES) yield all.subarray(at, at + CHUNK_BYTES);
  };
  return { sizeBytes: bytes.length, chunks: chunks(bytes), close: async () => undefined };
}

/**
 * @param {unknown} path
 * @returns {Promise<Source>}
 */
export async function fileSource(path) {
  if (typeof path !== 'string')
    throw new SnowflockError('bad-request', `resultFile must be the name of a file, not ${shown(path)}`);
  try {
    const file = await open(path);
    const info = await file.stat();
    if (info.isFile() && info.size > 0) {
      const { size } = info;
      return { sizeBytes: size, chunks: fileChunks(file, size), close: () => file.close() };
    }
    try {
      return bytesSource(await file.readFile()); // what has no size: a pipe, a device, a file of /proc
    } finally {
      await file.close();
    }
  } catch (error) {
    throw cannotSend(error instanceof Error ? error.message : String(error), error);
  }
}

/**
 * @param {import('node:fs/promises').FileHandle} file
 * @param {number} sizeBytes
 */
async function* fileChunks(file, sizeBytes) {
  for (let left = sizeBytes; left > 0;) {
    const { bytesRead, buffer } = await file
      .read(Buffer.alloc(Math.min(left, CHUNK_BYTES)), 0)
      .catch((error) => Promise.reject(cannotSend(String(error), error)));
    if (bytesRead === 0) throw cannotSend('the file became shorter while it was sent', undefined);
    left -= bytesRead;
    yield buffer.subarray(0, bytesRead);
  }
}

/**
 * @param {string} why
 * @param {unknown} cause
 */
function cannotSend(why, cause) {
  return new SnowflockError('bad-request', `the result cannot be sent: ${why}`, { cause });
}

/** @param {AbortSignal} signal */
function interrupted(signal) {
  return new SnowflockError('interrupted', 'the call was cancelled', { cause: signal.reason });
}

export function nonsense() {
  return new SnowflockError('internal', "the agent's answer makes no sense");
}

/** @param {unknown} value */
export function shown(value) {
  return typeof value === 'string' ? JSON.stringify(value.slice(0, 80)) : String(value);
}

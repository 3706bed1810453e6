// A small read-only NBD client: fixed newstyle negotiation, NBD_OPT_GO, simple replies.
// Source of every constant: the NBD protocol (github.com/NetworkBlockDevice/nbd, doc/proto.md). Big-endian throughout.
//
//   greeting -> flags sent -> option reply (INFO* ACK) -> transmission -> closed
//
// Owns its socket. Reads may be in flight at once, at most MAX_IN_FLIGHT; each lands in its caller's buffer.

import { createConnection, type Socket } from 'node:net';
import { SnowflockError } from '@snowflock/protocol/pages';

const NBD_MAGIC = 0x4e42444d41474943n;
const NBD_OPT_MAGIC = 0x49484156454f5054n;
const NBD_REP_MAGIC = 0x0003e889045565a9n;
const NBD_FLAG_FIXED_NEWSTYLE = 1;
const NBD_OPT_GO = 7;
const NBD_REP_ACK = 1;
const NBD_REP_INFO = 3;
const NBD_INFO_EXPORT = 0;
const NBD_REQUEST_MAGIC = 0x25609513;
const NBD_SIMPLE_REPLY_MAGIC = 0x67446698;
const NBD_CMD_READ = 0;
const NBD_CMD_DISC = 2;
const REQUEST_BYTES = 28;
const REPLY_BYTES = 16;
/** An INFO reply is a handful of numbers or a short text. */
const MAX_OPTION_BYTES = 65536;
const MAX_IN_FLIGHT = 64;

interface PendingRead {
  readonly target: Buffer;
  readonly offset: number;
  readonly length: number;
  filled: number;
  readonly resolve: () => void;
  readonly reject: (error: SnowflockError) => void;
}

export class NbdClient {
  readonly #socket: Socket;
  readonly #pending = new Map<number, PendingRead>();
  #sizeBytes = 0;
  #nextHandle = 1;
  /** Bytes of a reply header that is not complete. */
  #partial: Buffer = Buffer.alloc(0);
  #current: PendingRead | undefined;
  #failure: SnowflockError | undefined;

  private constructor(socket: Socket) {
    this.#socket = socket;
  }

  /** Connects to the default export of the server on a unix socket. The deadline covers connecting and negotiation. */
  static async connect(options: { readonly path: string; readonly timeoutMs: number }): Promise<NbdClient> {
    const socket = createConnection({ path: options.path });
    const client = new NbdClient(socket);
    const timer = setTimeout(() => socket.destroy(new Error('negotiation took too long')), options.timeoutMs);
    try {
      client.#sizeBytes = await negotiate(socket);
    } catch (error) {
      socket.destroy();
      throw new SnowflockError('unavailable', `NBD server at ${options.path}: ${(error as Error).message}`, {
        cause: error,
      });
    } finally {
      clearTimeout(timer);
    }
    socket.on('data', (chunk: Buffer) => client.#receive(chunk));
    socket.on('error', (error) => client.#fail(`connection failed: ${error.message}`));
    socket.on('close', () => client.#fail('connection closed'));
    return client;
  }

  get sizeBytes(): number {
    return this.#sizeBytes;
  }

  get failed(): boolean {
    return this.#failure !== undefined;
  }

  /** Reads `length` bytes at `position` of the export into `target` at `offset`. */
  read(target: Buffer, options: { offset: number; length: number; position: number }): Promise<void> {
    const { offset, length, position } = options;
    if (this.#failure !== undefined) return Promise.reject(this.#failure);
    if (position + length > this.#sizeBytes)
      return Promise.reject(
        new SnowflockError(
          'bad-request',
          `NBD read past the end: ${position}+${length} of ${this.#sizeBytes}`,
        ),
      );
    if (this.#pending.size >= MAX_IN_FLIGHT)
      return Promise.reject(new SnowflockError('unavailable', 'too many NBD reads in flight'));
    const handle = this.#nextHandle++;
    const request = Buffer.alloc(REQUEST_BYTES);
    request.writeUInt32BE(NBD_REQUEST_MAGIC, 0);
    request.writeUInt16BE(NBD_CMD_READ, 6);
    request.writeBigUInt64BE(BigInt(handle), 8);
    request.writeBigUInt64BE(BigInt(position), 16);
    request.writeUInt32BE(length, 24);
    return new Promise((resolve, reject) => {
      this.#pending.set(handle, { target, offset, length, filled: 0, resolve, reject });
      this.#socket.write(request);
    });
  }

  close(): void {
    if (this.#failure === undefined) {
      const request = Buffer.alloc(REQUEST_BYTES);
      request.writeUInt32BE(NBD_REQUEST_MAGIC, 0);
      request.writeUInt16BE(NBD_CMD_DISC, 6);
      this.#socket.end(request);
    }
    this.#fail('client closed');
    this.#socket.destroySoon();
  }

  #receive(chunk: Buffer): void {
    let at = 0;
    while (at < chunk.length && this.#failure === undefined) {
      const read = this.#current;
      if (read === undefined) {
        at = this.#takeHeader(chunk, at);
        continue;
      }
      const take = Math.min(read.length - read.filled, chunk.length - at);
      chunk.copy(read.target, read.offset + read.filled, at, at + take);
      read.filled += take;
      at += take;
      if (read.filled < read.length) continue;
      this.#current = undefined;
      read.resolve();
    }
  }

  #takeHeader(chunk: Buffer, at: number): number {
    const take = Math.min(REPLY_BYTES - this.#partial.length, chunk.length - at);
    this.#partial = Buffer.concat([this.#partial, chunk.subarray(at, at + take)]);
    if (this.#partial.length < REPLY_BYTES) return at + take;
    const header = this.#partial;
    this.#partial = Buffer.alloc(0);
    const handle = Number(header.readBigUInt64BE(8));
    const read = this.#pending.get(handle);
    if (header.readUInt32BE(0) !== NBD_SIMPLE_REPLY_MAGIC || read === undefined) {
      this.#fail('sent a reply in breach of the protocol');
      return at + take;
    }
    this.#pending.delete(handle);
    const errno = header.readUInt32BE(4);
    if (errno === 0) this.#current = read;
    else read.reject(new SnowflockError('unavailable', `NBD server reported error ${errno}`));
    return at + take;
  }

  #fail(reason: string): void {
    if (this.#failure !== undefined) return;
    this.#failure = new SnowflockError('unavailable', `NBD: ${reason}`);
    this.#socket.destroySoon();
    this.#current?.reject(this.#failure);
    for (const read of this.#pending.values()) read.reject(this.#failure);
    this.#pending.clear();
  }
}

/** Runs the negotiation to the transmission phase; returns the export's size. */
async function negotiate(socket: Socket): Promise<number> {
  const take = reader(socket);
  const greeting = await take(18);
  if (greeting.readBigUInt64BE(0) !== NBD_MAGIC || greeting.readBigUInt64BE(8) !== NBD_OPT_MAGIC)
    throw new Error('it does not speak NBD newstyle');
  if ((greeting.readUInt16BE(16) & NBD_FLAG_FIXED_NEWSTYLE) === 0)
    throw new Error('it does not speak fixed newstyle');
  // client flags (fixed newstyle), then NBD_OPT_GO with an empty export name and no information requests
  const go = Buffer.alloc(4 + 16 + 6);
  go.writeUInt32BE(NBD_FLAG_FIXED_NEWSTYLE, 0);
  go.writeBigUInt64BE(NBD_OPT_MAGIC, 4);
  go.writeUInt32BE(NBD_OPT_GO, 12);
  go.writeUInt32BE(6, 16);
  socket.write(go);
  let sizeBytes: number | undefined;
  for (;;) {
    const header = await take(20);
    const type = header.readUInt32BE(12);
    const length = header.readUInt32BE(16);
    if (
      header.readBigUInt64BE(0) !== NBD_REP_MAGIC ||
      header.readUInt32BE(8) !== NBD_OPT_GO ||
      length > MAX_OPTION_BYTES
    )
      throw new Error('it sent an option reply in breach of the protocol');
    const body = await take(length);
    if (type === NBD_REP_INFO && length >= 12 && body.readUInt16BE(0) === NBD_INFO_EXPORT)
      sizeBytes = Number(body.readBigUInt64BE(2));
    else if (type === NBD_REP_ACK && sizeBytes !== undefined) break;
    else if (type !== NBD_REP_INFO) throw new Error(`it refused the export (reply ${type.toString(16)})`);
  }
  socket.removeAllListeners();
  return sizeBytes;
}

/** Exact reads from a socket, for the negotiation only: nothing follows it unasked, so no byte is left over. */
function reader(socket: Socket): (length: number) => Promise<Buffer> {
  let buffered: Buffer = Buffer.alloc(0);
  let ended: Error | undefined;
  let wake: (() => void) | undefined;
  const end = (error: Error): void => {
    ended ??= error;
    wake?.();
  };
  socket.on('data', (chunk: Buffer) => {
    buffered = Buffer.concat([buffered, chunk]);
    wake?.();
  });
  socket.on('error', end);
  socket.on('close', () => end(new Error('it closed the connection')));
  return async (length) => {
    while (buffered.length < length) {
      if (ended !== undefined) throw ended;
      await new Promise<void>((resolve) => (wake = resolve));
    }
    const taken = buffered.subarray(0, length);
    buffered = buffered.subarray(length);
    return taken;
  };
}

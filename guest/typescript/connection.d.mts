/**
 * Makes a call, with the bytes of `source` behind its line; gives the words of the answer, or what `read` makes of them and of the
 * bytes behind them.
 * @template [T=string[]]
 * @param {(string | number)[]} words
 * @param {AbortSignal | undefined} signal
 * @param {{ source?: Source, read?: (words: string[], reader: Reader) => Promise<T> }} extra
 * @returns {Promise<T>}
 */
export function exchange<T = string[]>(words: (string | number)[], signal: AbortSignal | undefined, { source, read }: {
    source?: Source;
    read?: (words: string[], reader: Reader) => Promise<T>;
}): Promise<T>;
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
export function bytesSource(bytes?: unknown): Source;
/**
 * @param {unknown} path
 * @returns {Promise<Source>}
 */
export function fileSource(path: unknown): Promise<Source>;
export function nonsense(): SnowflockError;
/** @param {unknown} value */
export function shown(value: unknown): string;
/** A call failed. `code` is a fixed word such as `no-such-ticket`; the message says what happened and what to do. */
export class SnowflockError extends Error {
    /**
     * @param {string} code
     * @param {string} message
     * @param {ErrorOptions} [options]
     */
    constructor(code: string, message: string, options?: ErrorOptions);
    /**
     * The same words as in C and Python.
     * @readonly
     */
    readonly code: string;
}
/** Lines and bytes of a connection; fails when it ends before. */
export class Reader {
    /** @param {import('node:net').Socket} socket */
    constructor(socket: import("node:net").Socket);
    /** @type {AsyncIterator<Buffer>} */
    chunks: AsyncIterator<Buffer>;
    /** @type {Buffer} */
    pending: Buffer;
    /**
     * Without its newline.
     * @returns {Promise<string>}
     */
    line(): Promise<string>;
    /**
     * @param {number} sizeBytes
     * @returns {Promise<Buffer>}
     */
    bytes(sizeBytes: number): Promise<Buffer>;
    next(): Promise<Buffer<ArrayBufferLike>>;
}
/**
 * Bytes to be sent.
 */
export type Source = {
    sizeBytes: number;
    chunks: AsyncIterable<Uint8Array> | Iterable<Uint8Array>;
    close: () => Promise<void>;
};

// Lines of JSON over a stream socket, both directions. One line is one message; a line is capped before it is collected.

import type { Socket } from 'node:net';

/** Longest line in bytes. The largest message is a presence map in base64: 2 MiB of bitmap at 64 GiB of RAM, compressed. */
export const LINE_MAX_BYTES = 16 * 1024 * 1024;
const NEWLINE = 10;

export interface LineHandlers {
  readonly onLine: (line: string) => void;
  /** The peer sent a line over the cap. The socket is destroyed already. */
  readonly onOverlong: () => void;
}

/** Calls back for every complete line that `socket` receives. What is left when it ends is dropped: it is no message. */
export function readLines(socket: Socket, handlers: LineHandlers): void {
  let parts: Buffer[] = [];
  let size = 0;
  socket.on('data', (chunk: Buffer) => {
    let from = 0;
    for (;;) {
      const end = chunk.indexOf(NEWLINE, from);
      if (end < 0) break;
      parts.push(chunk.subarray(from, end));
      const line = Buffer.concat(parts).toString('utf8');
      parts = [];
      size = 0;
      from = end + 1;
      if (line.length > 0) handlers.onLine(line);
    }
    if (from === chunk.length) return;
    parts.push(chunk.subarray(from));
    size += chunk.length - from;
    if (size <= LINE_MAX_BYTES) return;
    parts = [];
    socket.destroy();
    handlers.onOverlong();
  });
}

export function writeLine(socket: Socket, message: object): void {
  if (!socket.destroyed && socket.writable) socket.write(JSON.stringify(message) + '\n');
}

/** A parsed line, or undefined when it is not a JSON object. */
export function parseLine(line: string): Record<string, unknown> | undefined {
  let value: unknown;
  try {
    value = JSON.parse(line);
  } catch (error) {
    if (error instanceof SyntaxError) return undefined;
    throw error;
  }
  return typeof value === 'object' && value !== null && !Array.isArray(value)
    ? (value as Record<string, unknown>)
    : undefined;
}

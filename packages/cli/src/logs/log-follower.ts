// Reads log files from where they were read last; what is read at once is put into the order of time.
//
// Invariants: half a line waits for its end; a file that became shorter or another file is read from its beginning; at most
// READ_MAX_BYTES of a file are read at once, the end of it.

import { open, type FileHandle } from 'node:fs/promises';
import { parseLogLine, type LogEntry, type LogName } from './log-entry.ts';

export interface LogFile {
  readonly host: string;
  readonly name: LogName;
  readonly path: string;
}

/** Some 100,000 lines: more than anybody reads. */
const READ_MAX_BYTES = 16 << 20;
/** A line is longer only when something is wrong; then it is shown in pieces. */
const LINE_MAX_BYTES = 1 << 20;

interface Place {
  inode: number;
  offset: number;
  half: string;
  before: LogEntry | null;
}

export class LogFollower {
  readonly #files: readonly LogFile[];
  readonly #places = new Map<string, Place>();

  constructor(files: readonly LogFile[]) {
    this.#files = files;
  }

  /** What is new since the last time, in order of time; files that are not there yet are looked for again. */
  async read(): Promise<LogEntry[]> {
    const parts = await Promise.all(this.#files.map((file) => this.#readFile(file)));
    return parts.flat().sort((a, b) => a.timeMs - b.timeMs);
  }

  async #readFile(file: LogFile): Promise<LogEntry[]> {
    let handle: FileHandle;
    try {
      handle = await open(file.path, 'r');
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === 'ENOENT') return [];
      throw error;
    }
    try {
      const { ino, size } = await handle.stat();
      const known = this.#places.get(file.path);
      const place =
        known?.inode === ino && known.offset <= size
          ? known
          : { inode: ino, offset: 0, half: '', before: null };
      this.#places.set(file.path, place);
      const from = Math.max(place.offset, size - READ_MAX_BYTES);
      const buffer = Buffer.alloc(size - from);
      const { bytesRead } = await handle.read(buffer, 0, buffer.length, from);
      const skipped = from > place.offset;
      place.offset = from + bytesRead;
      const lines = ((skipped ? '' : place.half) + buffer.toString('utf8', 0, bytesRead)).split('\n');
      if (skipped) lines.shift(); // the rest of a line that began before
      place.half = lines.pop() ?? '';
      if (place.half.length > LINE_MAX_BYTES) {
        lines.push(place.half);
        place.half = '';
      }
      return lines.flatMap((line) => {
        const entry = parseLogLine(line, { ...file, before: place.before });
        if (entry) place.before = entry;
        return entry ?? [];
      });
    } finally {
      await handle.close();
    }
  }
}

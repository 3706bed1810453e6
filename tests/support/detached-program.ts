// A program in a guest that nobody is connected to: it is told what to do through a pipe in the guest and prints into a file
// there, so that it goes on whatever becomes of the daemons.

import { eventually } from './deadline.ts';
import type { Guest } from './guest.ts';

const LINE_MS = 45_000;

export class DetachedProgram implements AsyncDisposable {
  readonly #guest: Guest;
  readonly #path: string;
  #lines: number;

  private constructor(guest: Guest, path: string, lines = 0) {
    this.#guest = guest;
    this.#path = path;
    this.#lines = lines;
  }

  /** Its copy in a VM that was made of this one as it is now. */
  in(guest: Guest): DetachedProgram {
    return new DetachedProgram(guest, this.#path, this.#lines);
  }

  static async start(guest: Guest, argv: readonly string[]): Promise<DetachedProgram> {
    const path = `/run/detached.${argv[0]?.split('/').at(-1) ?? ''}`;
    const script = 'path=$1; shift; mkfifo "$path.in"; setsid "$@" <>"$path.in" >"$path.out" 2>&1 &';
    await guest.run(['sh', '-c', script, 'sh', path, ...argv]);
    return new DetachedProgram(guest, path);
  }

  /** The next line that it prints. */
  line(deadlineMs = LINE_MS): Promise<string> {
    return eventually(deadlineMs, `a line in ${this.#path}.out of VM ${this.#guest.name}`, async () => {
      const printed = (await this.#guest.run(['cat', `${this.#path}.out`])).split('\n').filter(Boolean);
      const line = printed[this.#lines];
      if (line === undefined) throw new Error(`there are ${printed.length} lines`);
      this.#lines++;
      return line;
    });
  }

  async ask(line: string, deadlineMs = LINE_MS): Promise<string> {
    await this.tell(line);
    return this.line(deadlineMs);
  }

  /** Without waiting for what it says to it. */
  async tell(line: string): Promise<void> {
    await this.#guest.run(['sh', '-c', 'echo "$2" >"$1"', 'sh', `${this.#path}.in`, line]);
  }

  /** It goes with its VM. */
  async [Symbol.asyncDispose](): Promise<void> {
    return Promise.resolve();
  }
}

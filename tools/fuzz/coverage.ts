// Which bytes of our own source have been executed, by V8's precise block coverage (node:inspector). No instrumentation, no
// native addon: the engine that runs the code counts.

import { Session, type Profiler } from 'node:inspector';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';

const PACKAGES = pathToFileURL(join(import.meta.dirname, '../../packages/')).href;

export class Coverage {
  readonly #session = new Session();
  readonly #executed = new Map<string, Uint8Array>();
  #bytes = 0;

  constructor() {
    this.#session.connect();
    this.#session.post('Profiler.enable');
    this.#session.post('Profiler.startPreciseCoverage', { callCount: true, detailed: true });
  }

  get bytes(): number {
    return this.#bytes;
  }

  /** How many bytes that were never executed before have been since the last call. Not remembered, they are new again. */
  newBytes({ remember }: { remember: boolean }): number {
    let found = 0;
    // Within one process the answer comes before post() returns.
    this.#session.post('Profiler.takePreciseCoverage', (error, taken) => {
      if (error) throw error;
      for (const { url, functions } of taken.result)
        if (url.startsWith(PACKAGES))
          for (const each of functions) found += this.#add(url, each.ranges, remember);
    });
    if (remember) this.#bytes += found;
    return found;
  }

  close(): void {
    this.#session.disconnect();
  }

  /** Ranges of one function, outer ones before those within them, whose counts win. */
  #add(url: string, ranges: readonly Profiler.CoverageRange[], remember: boolean): number {
    const [whole] = ranges;
    if (!whole || whole.count === 0) return 0;
    const now = new Uint8Array(whole.endOffset - whole.startOffset);
    for (const { startOffset, endOffset, count } of ranges)
      now.fill(count > 0 ? 1 : 0, startOffset - whole.startOffset, endOffset - whole.startOffset);
    const known = this.#room(url, whole.endOffset);
    let found = 0;
    for (let index = 0; index < now.length; index++) {
      const at = whole.startOffset + index;
      if (now[index] === 0 || known[at] === 1) continue;
      if (remember) known[at] = 1;
      found++;
    }
    return found;
  }

  #room(url: string, size: number): Uint8Array {
    const known = this.#executed.get(url) ?? new Uint8Array(0);
    if (known.length >= size) return known;
    const grown = new Uint8Array(2 * size);
    grown.set(known);
    this.#executed.set(url, grown);
    return grown;
  }
}

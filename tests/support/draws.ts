// Random numbers that VMs draw all the while, before, during and after whatever becomes of them: /tmp/vmtest has to be there.
//
// A draw that two VMs have in common must be one of before they were two: then they have its time in common, too, to the nanosecond.

import { expect } from 'vitest';
import type { Guest } from './guest.ts';

const PATH = '/run/draws';

export class Draws {
  /** Time of each number that was drawn so far, by number. */
  readonly #drawn = new Map<string, string>();

  /** From now on in this VM, and in all that are made of it. */
  static async begin(guest: Guest, everyUs = 500): Promise<void> {
    await guest.sh(`/tmp/vmtest draw ${PATH} ${everyUs} >/dev/null 2>&1 &`);
  }

  /** Ends it in this VM: none of its numbers was drawn elsewhere at another time. Answers how many only this VM has drawn. */
  async addThoseOf(guest: Guest): Promise<number> {
    await guest.run(['killall', '-TERM', 'vmtest']);
    const draws = (await guest.file(PATH)).split('\n').map((line) => line.split(' '));
    const own = draws.filter(([, value = '']) => !this.#drawn.has(value));
    for (const [at = '', value = ''] of draws)
      expect(`${value} at ${this.#drawn.get(value) ?? at}`, guest.name).toBe(`${value} at ${at}`);
    for (const [at = '', value = ''] of own) this.#drawn.set(value, at);
    return own.length;
  }
}

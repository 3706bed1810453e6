// Sums of what memtaps and memservers have counted, over those that run and those that are gone: a counter that falls when a
// ticket is merged would be none.
//
// Invariant: of a process that ends, what it said last counts on for ever.

export class FetchTotals<Name extends string> {
  readonly #names: readonly Name[];
  readonly #gone = new Map<Name, number>();
  readonly #live = new Map<string, Readonly<Record<Name, number>>>();

  constructor(names: readonly Name[]) {
    this.#names = names;
  }

  /** The latest of one process; `id` is its ticket. */
  update(id: string, figures: Readonly<Record<Name, number>>): void {
    this.#live.set(id, figures);
  }

  /** The process is gone. */
  retire(id: string): void {
    const last = this.#live.get(id);
    if (!last) return;
    this.#live.delete(id);
    for (const name of this.#names) this.#gone.set(name, (this.#gone.get(name) ?? 0) + last[name]);
  }

  total(name: Name): number {
    let sum = this.#gone.get(name) ?? 0;
    for (const figures of this.#live.values()) sum += figures[name];
    return sum;
  }
}

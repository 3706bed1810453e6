// Keeps the filter of VXLAN as this host needs it: while a cluster has a network here, for the hosts that sfmd named.
//
// Invariant: one change at a time, each to what is wanted when its turn comes.

import { applyVxlanFilter, hasVxlanFilter, removeFilters } from '@snowflock/network';

/** `hosts` null: not known yet. A filter that an earlier sfld left stays then; where there is none, nobody may send. */
export type WantedFilter = { readonly hosts: readonly string[] | null } | 'none';

export interface FilterTools {
  readonly apply: (hosts: readonly string[]) => Promise<void>;
  readonly remove: () => Promise<void>;
  readonly exists: () => Promise<boolean>;
}

export function kernelFilter(localAddress: string): FilterTools {
  return {
    apply: (hosts) => applyVxlanFilter({ hosts, localAddress }),
    remove: () => removeFilters(),
    exists: () => hasVxlanFilter(),
  };
}

export class VxlanFilter {
  readonly #tools: FilterTools;
  readonly #wanted: () => WantedFilter;
  /** What the kernel has; null: not known, or as an earlier sfld left it. */
  #inForce: string | null = null;
  #queue: Promise<void> = Promise.resolve();

  constructor(tools: FilterTools, wanted: () => WantedFilter) {
    this.#tools = tools;
    this.#wanted = wanted;
  }

  /** Resolves when what is wanted is in force; throws when it could not be done, and the next sync tries again. */
  sync(): Promise<void> {
    const done = this.#queue.then(() => this.#apply());
    this.#queue = done.catch(() => undefined); // the caller's
    return done;
  }

  async #apply(): Promise<void> {
    const wanted = this.#wanted();
    const key = JSON.stringify(wanted);
    if (key === this.#inForce) return;
    this.#inForce = null;
    if (wanted === 'none') await this.#tools.remove();
    else if (wanted.hosts) await this.#tools.apply(wanted.hosts);
    else if (!(await this.#tools.exists())) await this.#tools.apply([]);
    this.#inForce = key;
  }
}

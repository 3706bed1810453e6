// What the journal says of a clone group: all that the next sfld needs to take it over.

import type { GroupEntry, Journal } from './journal.ts';

type CloneEntry = GroupEntry['clones'][number];

export class GroupRecord {
  readonly #journal: Journal;
  #entry: GroupEntry;
  #closed = false;

  constructor(journal: Journal, entry: GroupEntry) {
    this.#journal = journal;
    this.#entry = entry;
  }

  get entry(): GroupEntry {
    return this.#entry;
  }

  /** Of what is about to be. Throws 'unavailable' when the disk does not take it; then it must not be. */
  before(change: Partial<GroupEntry>): void {
    if (this.#closed) return;
    this.#entry = { ...this.#entry, ...change };
    this.#journal.put(this.#entry);
  }

  /** Of what has been. */
  after(change: Partial<GroupEntry>): void {
    if (this.#closed) return;
    this.#entry = { ...this.#entry, ...change };
    this.#journal.note(this.#entry);
  }

  cloneBefore(vmid: number, change: Partial<CloneEntry>): void {
    this.before({ clones: this.#clonesWith(vmid, change) });
  }

  cloneAfter(vmid: number, change: Partial<CloneEntry>): void {
    this.after({ clones: this.#clonesWith(vmid, change) });
  }

  add(vmid: number, process: CloneEntry['process']): void {
    const clone = { vmid, process, fork: null, exit: null, resetting: false };
    this.before({ clones: [...this.#entry.clones, clone] });
  }

  forget(vmid: number): void {
    this.after({ clones: this.#entry.clones.filter((each) => each.vmid !== vmid) });
  }

  /** It stays as it is, for the next sfld. */
  close(): void {
    this.#closed = true;
  }

  /** Closed, and gone. */
  remove(): void {
    this.#closed = true;
    this.#journal.remove(this.#entry);
  }

  #clonesWith(vmid: number, change: Partial<CloneEntry>): CloneEntry[] {
    return this.#entry.clones.map((each) => (each.vmid === vmid ? { ...each, ...change } : each));
  }
}

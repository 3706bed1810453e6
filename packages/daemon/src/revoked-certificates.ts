// Which certificates are revoked: sfmd's list, which it hands to every sfld with the answer to its report.

/** Serial numbers; whoever holds connections is told of every change. */
export class RevokedCertificates {
  #serials: ReadonlySet<string>;
  readonly #watchers: (() => void)[] = [];

  constructor(serials: Iterable<string> = []) {
    this.#serials = new Set(serials);
  }

  /** Bound, so that it can be handed on. */
  readonly has = (serial: string): boolean => this.#serials.has(serial);

  serials(): string[] {
    return [...this.#serials];
  }

  /** Answers whether that changed anything. */
  replace(serials: readonly string[]): boolean {
    const same = serials.length === this.#serials.size && serials.every((each) => this.#serials.has(each));
    if (same) return false;
    this.#serials = new Set(serials);
    for (const watcher of this.#watchers) watcher();
    return true;
  }

  onChange(watcher: () => void): void {
    this.#watchers.push(watcher);
  }
}

// Guests that have shut their cluster down and are about to power themselves off: ended when they do not.

/** Long enough for an orderly shutdown under emulation. */
const POWER_OFF_MS = 60_000;

export class PowerOffs implements Disposable {
  readonly #timers = new Set<NodeJS.Timeout>();

  /** Calls `late` unless this is disposed before. */
  expect(late: () => void): void {
    const timer = setTimeout(() => {
      this.#timers.delete(timer);
      late();
    }, POWER_OFF_MS);
    this.#timers.add(timer);
  }

  [Symbol.dispose](): void {
    for (const timer of this.#timers) clearTimeout(timer);
    this.#timers.clear();
  }
}

// Collects what a start or a rehearsal left behind, so that the collector does not run in the midst of the fork.

/** Does nothing where node was started without --expose-gc. */
export function collectYoungGarbage(): void {
  globalThis.gc?.({ type: 'minor' });
}

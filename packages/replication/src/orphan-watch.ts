// The orphan rule: a memserver or memtap outlives a restart of its supervisor, but not the supervisor's disappearance.
// When it was of use to nobody for `orphanMs` without a break, it ends itself.

/** How many looks per deadline; a fifth of the deadline is how late it may come. */
const LOOKS = 5;

export function watchOrphan(options: {
  readonly orphanMs: number;
  readonly inUse: () => boolean;
  readonly onOrphan: () => void;
}): NodeJS.Timeout {
  let lastUse = performance.now();
  const timer = setInterval(
    () => {
      if (options.inUse()) {
        lastUse = performance.now();
        return;
      }
      if (performance.now() - lastUse < options.orphanMs) return;
      clearInterval(timer);
      options.onOrphan();
    },
    Math.max(10, options.orphanMs / LOOKS),
  );
  return timer;
}

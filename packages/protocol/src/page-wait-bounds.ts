/** Bounds of the buckets in which waits for pages are counted, in microseconds: a fault over a fast network to one over a bad one. */
export const PAGE_WAIT_BOUNDS_US = [
  100, 250, 500, 1000, 2500, 5000, 10_000, 25_000, 50_000, 100_000, 250_000, 1_000_000,
] as const;

// What to fetch before anybody asks: pages that an earlier fork's clones needed first, made into a few requests.

/** Pages put in order together: requests keep the order of need roughly, and neighbours still meet. */
const GROUP_PAGES = 256;

/** Pages between two needed ones that are fetched along: they cost less than another request. */
const MAX_GAP_PAGES = 3;

export interface Run {
  readonly firstPage: number;
  readonly pageCount: number;
}

/** `pages` in order of need; `wanted` says whether a page still has to be fetched. */
export function prefetchRuns(
  pages: readonly number[],
  options: {
    readonly wanted: (page: number) => boolean;
    readonly maxRunPages: number;
    readonly maxGapPages?: number;
  },
): Run[] {
  const { maxGapPages = MAX_GAP_PAGES } = options;
  const runs: Run[] = [];
  for (let start = 0; start < pages.length; start += GROUP_PAGES) {
    const group = pages.slice(start, start + GROUP_PAGES).sort((a, b) => a - b);
    let first = -1;
    let end = -1;
    const close = (): void => {
      if (first >= 0) runs.push({ firstPage: first, pageCount: end - first });
    };
    for (const page of group) {
      if (page < end || !options.wanted(page)) continue;
      if (first < 0 || page - end > maxGapPages || page + 1 - first > options.maxRunPages) {
        close();
        first = page;
      } else {
        // whether one of them is wanted or not: the answer holds it, and whoever claimed it takes it from there
        for (let gap = end; gap < page; gap++) options.wanted(gap);
      }
      end = page + 1;
    }
    close();
  }
  return runs;
}

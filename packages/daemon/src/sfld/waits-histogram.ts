// A histogram of Prometheus whose values were counted elsewhere: by memtaps, one by one, and summed up over them.

import { Histogram, type Registry } from 'prom-client';
import { PAGE_WAIT_BOUNDS_US } from '@snowflock/protocol';
import type { FetchTotals } from './fetch-totals.ts';
import { type FetchFigure, WAIT_COUNT, WAIT_SUM_US, waitsUpTo } from './fetch-figures.ts';

const NAME = 'snowflock_fault_wait_seconds';
const HELP = 'How long READs of clones waited for pages to be fetched';

export class WaitsHistogram extends Histogram {
  readonly #totals: FetchTotals<FetchFigure>;

  constructor(options: { readonly totals: FetchTotals<FetchFigure>; readonly registry: Registry }) {
    const buckets = PAGE_WAIT_BOUNDS_US.map(seconds);
    super({ name: NAME, help: HELP, buckets, registers: [options.registry] });
    this.#totals = options.totals;
  }

  /** Where prom-client's histograms, as text and as JSON, have their values from; its types leave it out. */
  async getForPromString() {
    const total = (figure: FetchFigure): number => this.#totals.total(figure);
    const value = (suffix: string, count: number, labels: { le?: number | '+Inf' } = {}) => ({
      ...{ metricName: `${NAME}_${suffix}`, labels, sharedLabels: {}, value: count },
    });
    return {
      ...{ name: NAME, help: HELP, type: 'histogram', aggregator: 'sum' },
      values: [
        ...PAGE_WAIT_BOUNDS_US.map((bound) =>
          value('bucket', total(waitsUpTo(bound)), { le: seconds(bound) }),
        ),
        value('bucket', total(WAIT_COUNT), { le: '+Inf' }),
        value('sum', seconds(total(WAIT_SUM_US))),
        value('count', total(WAIT_COUNT)),
      ],
    };
  }
}

function seconds(us: number): number {
  return us / 1e6;
}

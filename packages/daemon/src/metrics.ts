// What both daemons count, for Prometheus (docs/metrics.md). One registry per daemon; GET /metrics of its listeners.

import { Counter, collectDefaultMetrics, Gauge, Histogram, Registry } from 'prom-client';
import type { ErrorCode } from '@snowflock/protocol';

/** From an answer out of memory to a merge that waits for hosts; a join, which waits for a computation, is beyond. */
const REQUEST_BUCKETS_SECONDS = [0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30];
/** Event loop lag is for seeing a daemon that hangs, not for profiling it. */
const EVENT_LOOP_RESOLUTION_MS = 50;

export interface Answered {
  readonly method: string;
  /** The pattern, never the path: a label per VM or ticket would grow for ever. Undefined: there is no such route. */
  readonly route: string | undefined;
  readonly status: number;
  readonly seconds: number;
}

export class DaemonMetrics {
  readonly registry = new Registry();
  readonly #requests: Histogram<'method' | 'route' | 'status'>;
  readonly #errors: Counter<'code' | 'to'>;
  readonly #certificate: Gauge;

  constructor() {
    const registers = [this.registry];
    this.#requests = new Histogram({
      name: 'snowflock_http_request_seconds',
      help: 'Time to answer a request, by route and status',
      labelNames: ['method', 'route', 'status'],
      buckets: REQUEST_BUCKETS_SECONDS,
      registers,
    });
    this.#errors = new Counter({
      name: 'snowflock_errors_total',
      help: 'Errors answered, by code and to whom: a daemon or command (http), or a guest',
      labelNames: ['code', 'to'],
      registers,
    });
    this.#certificate = new Gauge({
      name: 'snowflock_certificate_expires_seconds',
      help: "When the daemon's own certificate expires, in seconds since 1970",
      registers,
    });
    collectDefaultMetrics({
      register: this.registry,
      eventLoopMonitoringPrecision: EVENT_LOOP_RESOLUTION_MS,
    });
  }

  answered({ method, route = 'none', status, seconds }: Answered): void {
    this.#requests.observe({ method, route, status }, seconds);
  }

  failed(code: ErrorCode, to: 'http' | 'guest'): void {
    this.#errors.inc({ code, to });
  }

  certificateExpires(atMs: number): void {
    this.#certificate.set(Math.floor(atMs / 1000));
  }

  /** The text format; its content type is in the table of routes. */
  async text(): Promise<string> {
    await this.refresh();
    return this.registry.metrics();
  }

  /** Gets figures that others hold; has a deadline of its own. */
  protected async refresh(): Promise<void> {
    return undefined;
  }
}

// A master VM in a lab that a bench forks, and what the daemons recorded of each fork.

import { setTimeout as sleep } from 'node:timers/promises';
import type { Lab } from '@snowflock/lab';
import { CloneRecord, ForkRecord } from '@snowflock/protocol';
import { z } from 'zod';
import { BenchCluster } from '../cluster.ts';
import { GuestProgram } from './guest-program.ts';

const REQUEST_TIMEOUT_MS = 120_000;
const PREPARED_TIMEOUT_MS = 60_000;
const ANSWER_TIMEOUT_MS = 60_000;
/** Asking costs CPU time, of which the clones have need until they have answered. */
const UNOBSERVED_MS = 400;
const POLL_MS = 50;

export interface Fork {
  readonly record: ForkRecord;
  /** Every one has answered. */
  readonly clones: readonly CloneRecord[];
}

export class BenchMaster implements AsyncDisposable {
  readonly #lab: Lab;
  readonly #cluster: BenchCluster;
  readonly #program: GuestProgram;

  private constructor(lab: Lab, cluster: BenchCluster, program: GuestProgram) {
    this.#lab = lab;
    this.#cluster = cluster;
    this.#program = program;
  }

  get clusterid(): number {
    return this.#cluster.clusterid;
  }

  static async seed(lab: Lab, shape: { image: string; memoryMib: number }): Promise<BenchMaster> {
    const { image: diskImage, memoryMib } = shape;
    const cluster = await BenchCluster.seed(lab, { diskImage, vcpus: 1, memoryMib });
    const vm = `${cluster.clusterid}:0`;
    const program = await GuestProgram.start(lab.client(1), vm, ['/usr/lib/snowflock/sffork']);
    return new BenchMaster(lab, cluster, program);
  }

  /** Takes a ticket, waits until its clones wait, forks, and waits until each has answered. */
  async fork(count: number): Promise<Fork & { ticket: string }> {
    const [word, ticket = '', allowed] = (await this.#program.ask(`ticket ${count}`)).split(' ');
    if (word !== 'ticket' || Number(allowed) !== count)
      throw new Error(`a ticket for ${count} clones: ${word ?? ''} ${allowed ?? ''}`);
    await this.#until(PREPARED_TIMEOUT_MS, `the ${count} clones to wait`, async () =>
      (await this.#clones(ticket)).length === count ? true : undefined,
    );
    await this.#program.ask(`clone ${ticket}`);
    await sleep(UNOBSERVED_MS);
    const clones = await this.#until(ANSWER_TIMEOUT_MS, `the ${count} clones to answer`, async () => {
      const found = await this.#clones(ticket);
      return found.length === count && found.every((one) => one.firstAnswerAtMs !== null) ? found : undefined;
    });
    const [record] = await this.#everywhere(`/v1/forks?ticket=${ticket}`, z.array(ForkRecord));
    if (!record) throw new Error(`no record of the fork of ticket ${ticket}`);
    return { ticket, record, clones };
  }

  async merge(ticket: string): Promise<void> {
    const answer = await this.#program.ask(`merge ${ticket}`);
    if (answer !== 'merged') throw new Error(`merging ticket ${ticket}: ${answer}`);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#program[Symbol.asyncDispose]();
    await this.#cluster[Symbol.asyncDispose]();
  }

  #clones(ticket: string): Promise<CloneRecord[]> {
    return this.#everywhere(`/v1/clones?ticket=${ticket}`, z.array(CloneRecord));
  }

  async #everywhere<T>(path: string, reply: z.ZodType<T[]>): Promise<T[]> {
    const asked = this.#lab.hosts.map(({ k }) =>
      this.#lab.client(k).request({ method: 'GET', path, reply, timeoutMs: REQUEST_TIMEOUT_MS }),
    );
    return (await Promise.all(asked)).flat();
  }

  async #until<T>(timeoutMs: number, what: string, look: () => Promise<T | undefined>): Promise<T> {
    const end = performance.now() + timeoutMs;
    while (performance.now() < end) {
      const found = await look();
      if (found !== undefined) return found;
      await sleep(POLL_MS);
    }
    throw new Error(`${what}: not within ${timeoutMs} ms`);
  }
}

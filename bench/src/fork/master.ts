// A master VM in a lab that a bench forks, and what the daemons recorded of each fork.

import { setTimeout as sleep } from 'node:timers/promises';
import type { Lab } from '@snowflock/lab';
import type { CloneRecord, ForkRecord } from '@snowflock/protocol';
import { BenchCluster } from '../cluster.ts';
import { giveUpBalloon } from './balloon.ts';
import { GuestProgram } from './guest-program.ts';
import { cloneRecords, forkRecord, preparedClones, until } from './records.ts';

const ANSWER_TIMEOUT_MS = 180_000;
/** Asking costs CPU time, of which the clones have need until they have answered. */
const UNOBSERVED_MS = 400;
/** Each look also asks the memtaps, which may be at work. */
const ANSWER_POLL_MS = 200;

export interface Fork {
  readonly record: ForkRecord;
  /** Every one has answered. */
  readonly clones: readonly CloneRecord[];
}

export interface MasterShape {
  readonly image: string;
  readonly memoryMib: number;
  /** Filled by a program that then sleeps. */
  readonly touchedMib?: number | undefined;
  /** Filled by the program that forks; its copies in clones answer only when they have read all of it and found it right. */
  readonly areaMib?: number | undefined;
  /** False: what the guest frees counts as in use. */
  readonly freePageReporting?: false | undefined;
}

export class BenchMaster implements AsyncDisposable {
  readonly #lab: Lab;
  readonly #cluster: BenchCluster;
  readonly #program: GuestProgram;
  readonly #owned: AsyncDisposableStack;

  private constructor(
    lab: Lab,
    parts: { cluster: BenchCluster; program: GuestProgram; owned: AsyncDisposableStack },
  ) {
    this.#lab = lab;
    this.#cluster = parts.cluster;
    this.#program = parts.program;
    this.#owned = parts.owned;
  }

  /** Where the master VM runs. */
  get host(): string {
    return this.#cluster.host;
  }

  get clusterid(): number {
    return this.#cluster.clusterid;
  }

  static async seed(lab: Lab, shape: MasterShape): Promise<BenchMaster> {
    const { image: diskImage, memoryMib, touchedMib, areaMib } = shape;
    await using stack = new AsyncDisposableStack();
    const cluster = stack.use(await BenchCluster.seed(lab, { diskImage, vcpus: 1, memoryMib }));
    const start = async (program: string, args: number[]): Promise<GuestProgram> =>
      stack.use(
        await GuestProgram.start(lab.client(1), `${cluster.clusterid}:0`, [
          `/usr/lib/snowflock/${program}`,
          ...args.map(String),
        ]),
      );
    if (shape.freePageReporting === false) await giveUpBalloon(lab.client(1), `${cluster.clusterid}:0`);
    if (touchedMib !== undefined) await (await start('sftouch', [touchedMib])).ask(null);
    const program = await start('sffork', areaMib === undefined ? [] : [areaMib]);
    if (areaMib !== undefined && (await program.ask(null)) !== 'filled')
      throw new Error('the guest did not fill its memory');
    return new BenchMaster(lab, { cluster, program, owned: stack.move() });
  }

  /** Takes a ticket, waits until its clones wait, forks, and waits until each has answered. `prepared` is called before the fork. */
  async fork(
    count: number,
    { prepared = async () => undefined }: { readonly prepared?: (ticket: string) => Promise<void> } = {},
  ): Promise<Fork & { ticket: string }> {
    const [word, ticket = '', allowed] = (await this.#program.ask(`ticket ${count}`)).split(' ');
    if (word !== 'ticket' || Number(allowed) !== count)
      throw new Error(`a ticket for ${count} clones: ${word ?? ''} ${allowed ?? ''}`);
    await preparedClones(this.#lab, ticket, count);
    await prepared(ticket);
    await this.#program.ask(`clone ${ticket}`);
    await sleep(UNOBSERVED_MS);
    const answered = async (): Promise<CloneRecord[] | undefined> => {
      const found = await cloneRecords(this.#lab, ticket);
      return found.length === count && found.every((one) => one.firstAnswerAtMs !== null) ? found : undefined;
    };
    const waiting = `the ${count} clones to answer`;
    const clones = await until(ANSWER_TIMEOUT_MS, waiting, answered, ANSWER_POLL_MS);
    return { ticket, record: await forkRecord(this.#lab, ticket), clones };
  }

  async merge(ticket: string): Promise<void> {
    const answer = await this.#program.ask(`merge ${ticket}`);
    if (answer !== 'merged') throw new Error(`merging ticket ${ticket}: ${answer}`);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#owned.disposeAsync();
  }
}

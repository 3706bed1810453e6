// The BLAST job (examples/blast) on a VM of a lab: a database warm in its memory, which clones on other hosts search, each for its share
// of the queries. They stay, so that they can do it again.

import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { Lab } from '@snowflock/lab';
import type { CloneRecord, ForkRecord } from '@snowflock/protocol';
import { execInVm } from '@snowflock/sdk';
import { BenchCluster } from '../cluster.ts';
import { giveUpBalloon } from '../fork/balloon.ts';
import { GuestProgram } from '../fork/guest-program.ts';
import { cloneRecords, forkRecord, preparedClones } from '../fork/records.ts';

const BOOT_TIMEOUT_MS = 120_000;
export const IMAGE = 'debian';
const SCRIPT = join(import.meta.dirname, '../../../examples/blast/blast_clones.py');
const ROUNDS = join(import.meta.dirname, 'blast_rounds.py');
const QUERY_SET = '/srv/klebsiella/query.faa';
const DATABASE = '/srv/klebsiella/db/kleb3';
const QUERIES = '/root/queries.faa';

export interface BlastShape {
  readonly memoryMib: number;
  /** Proteins that are searched for, by all clones together. */
  readonly queries: number;
  /** Of the VM's memory that a program has filled besides; absent: none. */
  readonly filledMib?: number | undefined;
  /** False: what the guest frees counts as in use. */
  readonly freePageReporting?: false | undefined;
}

/** Commands that put the queries and the database into the memory of a VM. */
export async function warming({ queries }: BlastShape): Promise<(readonly string[])[]> {
  const take = `awk '/^>/ { n++ } n > ${queries} { exit } { print }' ${QUERY_SET} > ${QUERIES}`;
  return [
    ['sh', '-c', take],
    ['python3', '-c', await readFile(SCRIPT, 'utf8'), 'warm', DATABASE],
    // what is copied of a VM without its disk has to be on the disk
    ['sync'],
  ];
}

export interface BlastRound {
  readonly ms: number;
  readonly hits: number;
}

export class BlastJob implements AsyncDisposable {
  readonly #lab: Lab;
  readonly #cluster: BenchCluster;
  readonly #program: GuestProgram;
  readonly #owned: AsyncDisposableStack;
  /** Of the first round, which every other has to find again. */
  #found: string | null = null;

  private constructor(
    lab: Lab,
    parts: { cluster: BenchCluster; program: GuestProgram; owned: AsyncDisposableStack },
  ) {
    this.#lab = lab;
    this.#cluster = parts.cluster;
    this.#program = parts.program;
    this.#owned = parts.owned;
  }

  static async seed(lab: Lab, shape: BlastShape): Promise<BlastJob> {
    await using stack = new AsyncDisposableStack();
    const { memoryMib, filledMib } = shape;
    const cluster = stack.use(await BenchCluster.seed(lab, { diskImage: IMAGE, vcpus: 1, memoryMib }));
    const vm = `${cluster.clusterid}:0`;
    const client = lab.client(1);
    const run = async (argv: readonly string[], input = ''): Promise<void> => {
      const { status, stderr } = await execInVm(client, vm, argv, { input, waitMs: BOOT_TIMEOUT_MS });
      if (status !== 0)
        throw new Error(`VM ${vm}: ${argv[0] ?? ''} failed: ${stderr.toString().slice(-2000)}`);
    };
    if (shape.freePageReporting === false) await giveUpBalloon(client, vm);
    if (filledMib !== undefined) {
      const filler = ['/usr/lib/snowflock/sftouch', String(filledMib)];
      await stack.use(await GuestProgram.start(client, vm, filler)).ask(null);
    }
    for (const argv of await warming(shape)) await run(argv);
    for (const path of [SCRIPT, ROUNDS])
      await run(['sh', '-c', `cat > /root/${path.split('/').at(-1) ?? ''}`], await readFile(path, 'utf8'));
    const rounds = ['python3', '/root/blast_rounds.py', QUERIES];
    const program = stack.use(await GuestProgram.start(client, vm, rounds));
    return new BlastJob(lab, { cluster, program, owned: stack.move() });
  }

  /** Where the master VM runs. */
  get host(): string {
    return this.#cluster.host;
  }

  /** Resolves when its clones wait for the fork. */
  async ticket(count: number): Promise<{ ticket: string; clones: readonly CloneRecord[] }> {
    const [, ticket = '', allowed] = (await this.#program.ask(`ticket ${count}`)).split(' ');
    if (Number(allowed) !== count)
      throw new Error(`a ticket for ${count} clones allows ${allowed ?? 'nothing'}`);
    return { ticket, clones: await preparedClones(this.#lab, ticket, count) };
  }

  /** From the call that forks to the last clone's hits. */
  async fork(ticket: string): Promise<BlastRound> {
    return this.#round(`fork ${ticket}`);
  }

  /** The same in the same clones. */
  async again(): Promise<BlastRound> {
    return this.#round('again');
  }

  async records(ticket: string): Promise<{ fork: ForkRecord; clones: readonly CloneRecord[] }> {
    return { fork: await forkRecord(this.#lab, ticket), clones: await cloneRecords(this.#lab, ticket) };
  }

  /** The clones exit. */
  async end(): Promise<void> {
    await this.#program.ask('end');
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#owned.disposeAsync();
  }

  async #round(word: string): Promise<BlastRound> {
    const answer = await this.#program.ask(word);
    const [, seconds, hits, sha256] = answer.split(' ');
    this.#found ??= sha256 ?? '';
    if (Number(hits) === 0 || sha256 !== this.#found)
      throw new Error(`the clones did not find what they found at first: '${word}' answered '${answer}'`);
    return { ms: Number(seconds) * 1000, hits: Number(hits) };
  }
}

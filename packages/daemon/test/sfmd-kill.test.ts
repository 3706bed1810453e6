// A real sfmd, killed with SIGKILL at random moments while hosts and guests ask it over real TLS, and started again: every
// answer that anybody got is still true.

import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { createInterface } from 'node:readline';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { randomUUID } from 'node:crypto';
import { expect, it } from 'vitest';
import { seededRandom } from '@snowflock/cluster';
import {
  NoReply,
  RedeemReply,
  SeedReply,
  SystemState,
  TicketGrant,
  type ControlClient,
  type ControlRequest,
} from '@snowflock/protocol';
import { askMaster } from '../src/sfld/ask-master.ts';
import { daemonUnderTest, type DaemonUnderTest } from './daemon-process.ts';
import { createTestCa } from './sfmd-fixture.ts';
import { FakeHost } from './sfmd-peer.ts';

const NAMES = ['host1', 'host2', 'host3'];
const KILLS = 8;
const GUESTS = 5;
const READY_MS = 20_000;

async function start(sfmd: DaemonUnderTest): Promise<ChildProcess> {
  const main = join(import.meta.dirname, '../src/sfmd/main.ts');
  const child = spawn(process.execPath, [main, 'run', '--config', sfmd.config], {
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  let errors = '';
  child.stderr.on('data', (chunk: Buffer) => (errors = (errors + String(chunk)).slice(-2000)));
  const [line] = (await once(createInterface(child.stdout), 'line', {
    signal: AbortSignal.timeout(READY_MS),
  }).catch((error: unknown) => {
    child.kill('SIGKILL');
    throw new Error(`sfmd did not get ready: ${errors}`, { cause: error });
  })) as [string];
  expect(line).toContain('"ready":true');
  return child;
}

async function kill(child: ChildProcess): Promise<void> {
  const ended = once(child, 'exit');
  child.kill('SIGKILL');
  await ended;
}

/** What the guests were told of their tickets. */
class Told {
  readonly #tickets = new Map<
    string,
    { state: 'unused' | 'outstanding' | 'gone'; busy: boolean; version: number }
  >();

  set(ticket: string, state: 'unused' | 'outstanding' | 'gone'): void {
    this.#tickets.set(ticket, { state, busy: false, version: this.#version(ticket) + 1 });
  }

  /** Asked for, not answered: either state may be seen. */
  asking(ticket: string): void {
    const known = this.#tickets.get(ticket);
    if (known) this.#tickets.set(ticket, { ...known, busy: true, version: known.version + 1 });
  }

  get size(): number {
    return this.#tickets.size;
  }

  /** Compares with what sfmd says, leaving out what changed meanwhile. Answers how many were compared. */
  async compare(ask: () => Promise<SystemState>): Promise<number> {
    const before = new Map(this.#tickets);
    const state = await ask();
    const seen = new Map(
      state.clusters.flatMap((cluster) => cluster.tickets.map(({ ticket, status }) => [ticket, status])),
    );
    let compared = 0;
    for (const [ticket, told] of before) {
      if (told.busy || this.#version(ticket) !== told.version) continue;
      compared += 1;
      expect(seen.get(ticket) ?? 'gone', `ticket ${ticket}, as its guest was told`).toBe(told.state);
    }
    for (const host of state.hosts) {
      expect(host.cpusFree).toBeGreaterThanOrEqual(0);
      expect(host.ramFreeBytes).toBeGreaterThanOrEqual(0);
    }
    return compared;
  }

  #version(ticket: string): number {
    return this.#tickets.get(ticket)?.version ?? 0;
  }
}

it(
  'killed at random moments under load: every answer is still true, nothing is left in the end',
  { timeout: 120_000 },
  async () => {
    const seed = Number(process.env['SNOWFLOCK_SEED'] ?? Date.now() % 1e6);
    const random = seededRandom(seed);
    await using stack = new AsyncDisposableStack();
    const ca = stack.use(createTestCa());
    const sfmd = stack.use(daemonUnderTest({ name: 'sfmd', tls: ca.issue('master') }));
    const port = 20000 + (process.pid % 12000);
    sfmd.writeConfig(`cluster_hosts = [${NAMES.map((host) => `{'host': '${host}', 'cpus': 6, 'RAM': 1 << 33}`).join(', ')}]
address = '127.0.0.1'
master_listen_port = ${port}
`);
    let child = await start(sfmd);
    stack.defer(() => kill(child));
    const stopping = new AbortController();
    const hosts: FakeHost[] = [];
    for (const name of NAMES) {
      const host = stack.use(new FakeHost(name, ca.issue(name), port));
      host.behaviour.listVms = true;
      await host.listen();
      await host.report();
      hosts.push(host);
    }
    const reporting = hosts.map(async (host) => {
      while (!stopping.signal.aborted) {
        await host.report().catch(() => undefined); // sfmd is away
        await sleep(300);
      }
    });
    const [first] = hosts as [FakeHost];
    const ask = <T>(
      client: ControlClient,
      request: Omit<ControlRequest<T>, 'timeoutMs'>,
      done: 'ticket-disposed' | null = null,
    ): Promise<T> => askMaster(client, { timeoutMs: 20_000, ...request }, done ? { done: [done] } : {});
    const state = (): Promise<SystemState> =>
      ask(first.sfmd, { method: 'GET', path: '/v1/state', reply: SystemState });
    const shape = { diskImage: 'micro', vcpus: 1, memoryMib: 64 };
    const clusterids: number[] = [];
    for (let index = 0; index < GUESTS; index++)
      clusterids.push(
        (await ask(first.sfmd, { method: 'POST', path: '/v1/clusters', body: shape, reply: SeedReply }))
          .clusterid,
      );
    const told = new Told();

    /** One guest: tickets, forks, merges, over and over, through the sfld of its host. */
    async function guest(clusterid: number): Promise<number> {
      const host = hosts.find((each) => each.masters.has(clusterid));
      if (!host) throw new Error(`cluster ${clusterid} is nowhere`);
      const base = `/v1/clusters/${clusterid}/tickets`;
      let rounds = 0;
      for (; !stopping.signal.aborted; rounds++) {
        const body = {
          nclones: 1 + Math.floor(random() * 5),
          procs: false,
          min: 0,
          block: true,
          requestId: randomUUID(),
        };
        const { ticket } = await ask(host.sfmd, { method: 'POST', path: base, body, reply: TicketGrant });
        if (ticket === null) throw new Error('a blocking request got nothing');
        told.set(ticket, 'unused');
        const dice = random();
        if (dice < 0.3) {
          told.asking(ticket);
          await ask(
            host.sfmd,
            { method: 'DELETE', path: `${base}/${ticket}`, reply: NoReply },
            'ticket-disposed',
          );
          told.set(ticket, 'gone');
          continue;
        }
        told.asking(ticket);
        const { clones } = await ask(host.sfmd, {
          ...{ method: 'POST', path: `${base}/${ticket}/redeem`, reply: RedeemReply },
          body: { redemption: randomUUID() },
        });
        expect(clones.length).toBeGreaterThan(0);
        await ask(host.sfmd, {
          ...{ method: 'POST', path: `${base}/${ticket}/launched`, reply: NoReply },
          body: { clones: clones.map(({ vmid }) => ({ vmid, ok: true })) },
        });
        told.set(ticket, 'outstanding');
        await sleep(random() * 200);
        told.asking(ticket);
        await ask(host.sfmd, { method: 'POST', path: `${base}/${ticket}/merge`, reply: NoReply });
        told.set(ticket, 'gone');
      }
      return rounds;
    }

    const guests = Promise.all(clusterids.map(guest));
    guests.catch(() => stopping.abort());
    let compared = 0;
    try {
      for (let kills = 0; kills < KILLS && !stopping.signal.aborted; kills++) {
        await sleep(random() * 700);
        await kill(child);
        child = await start(sfmd);
        compared += await told.compare(state);
      }
      stopping.abort();
      const rounds = (await guests).reduce((sum, each) => sum + each, 0);
      expect([rounds > 10, compared > 10], `${rounds} rounds, ${compared} compared`).toEqual([true, true]);
      await Promise.all(reporting);
      for (const host of hosts) await host.report();
      for (const clusterid of clusterids)
        await ask(first.sfmd, {
          method: 'DELETE',
          path: `/v1/clusters/${clusterid}?force=1`,
          reply: NoReply,
        });
      await expect.poll(async () => (await state()).clusters, { timeout: 15_000 }).toEqual([]);
      for (const host of hosts) expect([host.host, host.empty]).toEqual([host.host, true]);
      for (const host of (await state()).hosts) expect(host.cpusFree).toBe(6);
      const next = await ask(first.sfmd, {
        method: 'POST',
        path: '/v1/clusters',
        body: shape,
        reply: SeedReply,
      });
      expect(next.clusterid).toBe(GUESTS);
    } catch (error) {
      throw new Error(`seed ${seed}: ${String(error)}`, { cause: error });
    } finally {
      stopping.abort();
      await Promise.allSettled([guests, ...reporting]);
    }
  },
);

import { execFileSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, readFileSync, rmSync, statSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { SnowflockError } from '@snowflock/protocol';
import { apply, seededRandom, type Command, type SystemData } from '@snowflock/cluster';
import { MIGRATIONS } from '../src/sfmd/store-migrations.ts';
import { Store } from '../src/sfmd/store.ts';

let dir: string;
let path: string;
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), 'snowflock-store-'));
  path = join(dir, 'state', 'state.db');
});
afterEach(() => rmSync(dir, { recursive: true }));

let ids = 0;
const chance = {
  random: seededRandom(1),
  newTicket: () => `00000000-0000-4000-8000-${(++ids).toString(16).padStart(12, '0')}`,
};
const hosts = ['h0', 'h1'].map((host) => ({ host, cpus: 8, ramBytes: 2 ** 33 }));
const report = (host: string): Command => ({
  ...{ type: 'host-reported', host, nowMs: 5 },
  report: { address: '10.0.0.1', sfldPort: 1, accel: 'tcg', instance: 'i1' },
});
const SEED: Command = { type: 'seed', shape: { diskImage: 'micro', vcpus: 1, memoryMib: 256 } };
const restart: Command = { type: 'restarted', hosts, clusterid: 0, nowMs: 0, unixMs: 0 };
function run(store: Store, system: SystemData, ...commands: Command[]): void {
  for (const command of commands) {
    apply(system, command, chance);
    store.commit(system);
  }
}
const refusal = (work: () => unknown): string => {
  try {
    work();
    return 'nothing was refused';
  } catch (error) {
    return error instanceof SnowflockError ? `${error.code}: ${error.message}` : `other: ${String(error)}`;
  }
};

describe('the store', () => {
  it('gives back what was committed, to the next sfmd too; only its owner can read it', () => {
    let before: SystemData;
    {
      using store = Store.open(path);
      const system = store.committed();
      run(store, system, restart, report('h0'), report('h1'), SEED);
      run(store, system, { type: 'master-started', clusterid: 0, diskBytes: 512 });
      const request = { nclones: 3, procs: false, min: 0, block: false };
      run(store, system, { type: 'request-ticket', clusterid: 0, requestId: 'r', request });
      before = structuredClone(system);
      expect(store.committed()).toEqual(system);
      // As after kill -9: nothing was closed.
      execFileSync('cp', ['-r', join(dir, 'state'), join(dir, 'killed')]);
    }
    for (const name of ['state', 'killed']) {
      using store = Store.open(join(dir, name, 'state.db'));
      const after = store.committed();
      expect(after.clusters[0]?.vms).toEqual(before.clusters[0]?.vms);
      expect(Object.keys(after.clusters[0]?.tickets ?? {})).toHaveLength(1);
      expect(after.nextClusterid).toBe(1);
      expect(after.hosts['h0']).toMatchObject({ up: true, instance: 'i1', reportedAtMs: null });
    }
    expect(statSync(path).mode & 0o777).toBe(0o600);
    expect(statSync(join(dir, 'state')).mode & 0o077).toBe(0);
  });

  it('keeps how long the clones of a fork have run', () => {
    {
      using store = Store.open(path);
      const system = store.committed();
      run(store, system, { ...restart, unixMs: 5000 }, report('h0'), report('h1'), SEED);
      run(store, system, { type: 'master-started', clusterid: 0, diskBytes: 512 });
      const request = { nclones: 2, procs: false, min: 0, block: false };
      run(store, system, { type: 'request-ticket', clusterid: 0, requestId: 'r', request });
      const [ticket = ''] = Object.keys(system.clusters[0]?.tickets ?? {});
      system.nowMs = 100;
      run(store, system, { type: 'redeem', clusterid: 0, ticket });
      const ended = { how: 'powered-off', reason: 'off' } as const;
      run(store, system, { type: 'tick', nowMs: 250 }, { type: 'vm-ended', clusterid: 0, vmid: 1, ended });
    }
    using store = Store.open(path);
    const { vms, tickets } = store.committed().clusters[0] ?? {};
    expect(Object.values(tickets ?? {})).toMatchObject([{ forkedUnixMs: 5100 }]);
    expect(vms).toMatchObject({ 1: { ranMs: 150 }, 2: { ranMs: null } });
  });

  it('flushes every commit to the disk', () => {
    using store = Store.open(path);
    expect(store.durability()).toEqual({ journal: 'wal', synchronous: 2, locking: 'exclusive' });
  });

  it('has one sfmd at a time', () => {
    using first = Store.open(path);
    run(first, first.committed(), restart);
    const script = `import { Store } from ${JSON.stringify(join(import.meta.dirname, '../src/sfmd/store.ts'))};
      try { Store.open(${JSON.stringify(path)}); console.log('opened'); } catch (error) { console.log(error.message); }`;
    writeFileSync(join(dir, 'second.ts'), script);
    expect(execFileSync(process.execPath, [join(dir, 'second.ts')], { encoding: 'utf8' })).toContain(
      'does an sfmd with the same state_dir run already?',
    );
  });

  it('refuses a file of a newer release, a damaged one and one that contradicts itself, and says what to do', () => {
    Store.open(path)[Symbol.dispose]();
    const edit = (sql: string): void => {
      const database = new DatabaseSync(path);
      database.exec(sql);
      database.close();
    };
    edit('PRAGMA user_version = 99');
    expect(refusal(() => Store.open(path))).toMatch(/newer SnowFlock \(format 99, .*start that release/);
    edit(`PRAGMA user_version = ${MIGRATIONS.length}`);
    edit(`INSERT INTO cleanup VALUES ('k', '{"host":"h0","clusterid":7,"ticket":null,"vmid":null}')`);
    expect(refusal(() => Store.open(path))).toContain('cluster 7, whose id may be given out again');
    edit(`UPDATE cleanup SET fields = '{"host":1}'`);
    expect(refusal(() => Store.open(path))).toContain(`row 'k' of cleanup is not what it must be`);
    edit(`UPDATE cleanup SET fields = '{'`);
    expect(refusal(() => Store.open(path))).toContain('Bring it back from a copy');
    truncateSync(path, 5000);
    expect(refusal(() => Store.open(path))).toContain('is damaged');
    writeFileSync(path, 'this is no database, though it is quite long'.repeat(100));
    expect(refusal(() => Store.open(path))).toContain('is damaged');
  });

  it('takes over a file of format 1, where only master VMs forked', () => {
    mkdirSync(join(dir, 'state'));
    const database = new DatabaseSync(path);
    database.exec(readFileSync(join(import.meta.dirname, 'fixtures/state-1.sql'), 'utf8'));
    database.close();
    using store = Store.open(path);
    const system = store.committed();
    const [waiting] = system.queue;
    expect(waiting).toMatchObject({ owner: 0, request: { block: true } });
    const cluster = system.clusters[0];
    const tickets = Object.values(cluster?.tickets ?? {});
    expect(tickets.map(({ owner, status }) => [owner, status])).toEqual([
      [0, 'outstanding'],
      [0, 'unused'],
    ]);
    // A third one was merged, which its hosts have not confirmed yet.
    const master = cluster?.vms[0]?.host;
    expect(Object.values(cluster?.frozen ?? {}).map(({ host }) => host)).toEqual([master, master, master]);
    // It goes on from there.
    run(store, system, restart);
    for (const cleanup of [...system.cleanups]) run(store, system, { type: 'cleaned', ...cleanup });
    expect(Object.keys(system.clusters[0]?.frozen ?? {})).toEqual(Object.keys(cluster?.tickets ?? {}));
  });

  it('has done nothing when the disk is full, and goes on when there is room', () => {
    using store = Store.open(path);
    const system = store.committed();
    run(store, system, restart, report('h0'), report('h1'));
    const before = structuredClone(store.committed());
    store.limitPages(1);
    apply(system, SEED, chance);
    for (let vmid = 0; vmid < 300; vmid++)
      system.cleanups.push({ host: 'h0'.padEnd(200, 'x'), clusterid: 0, ticket: null, vmid });
    expect(refusal(() => store.commit(system))).toMatch(
      /unavailable: .*so nothing was changed; is the disk full/,
    );
    expect(store.committed()).toEqual(before);
    store.limitPages(1 << 30);
    const again = store.committed();
    run(store, again, SEED);
    expect(Object.keys(store.committed().clusters)).toEqual(['0']);
  });
});

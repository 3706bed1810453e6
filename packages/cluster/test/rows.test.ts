import { expect, it } from 'vitest';
import { StoredRows } from '../src/index.ts';
import { World } from './world.ts';

it('writes what a command changed and nothing else, and gives the state back', () => {
  const world = new World({ hosts: 3 });
  const rows = new StoredRows();
  const take = (): string[] => {
    const { put, remove } = rows.take(world.system).changes;
    return [
      ...put.map((row) => `${row.kind} ${row.key}`),
      ...remove.map((row) => `- ${row.kind} ${row.key}`),
    ];
  };
  expect(take()).toEqual(['system ', 'host h0', 'host h1', 'host h2']);
  world.applyInPlace = true;
  const clusterid = world.seed();
  expect(take()).toEqual(['system ', 'cluster 0', 'vm 0:0']);
  const ticket = world.ticket(clusterid, 1);
  expect(take()).toEqual(['cluster 0', 'vm 0:1', `ticket 0/${ticket}`, `frozen 0/${ticket}`]);
  world.nowMs = 1000;
  world.report('h1');
  world.do({ type: 'tick', nowMs: 1000 });
  expect(take()).toEqual([]);
  expect(rows.restore()).toEqual(world.system);
  world.do({ type: 'prepared', clusterid, ticket, host: 'h0', part: 'source', error: null });
  expect(take()).toEqual([`ticket 0/${ticket}`]);
  world.do({ type: 'dispose', clusterid, ticket });
  expect(take().filter((row) => !row.startsWith('cleanup'))).toEqual([
    'past 0',
    'vm 0:1',
    `- ticket 0/${ticket}`,
  ]);
  world.clean();
  expect(take().filter((row) => !row.startsWith('- cleanup'))).toEqual([`- vm 0:1`, `- frozen 0/${ticket}`]);
  expect(rows.restore()).toEqual(world.system);
});

it('goes back to what was stored', () => {
  const world = new World({ hosts: 2 });
  world.applyInPlace = true;
  const rows = new StoredRows();
  rows.take(world.system);
  const stored = structuredClone(world.system);
  const clusterid = world.seed();
  const { undo } = rows.take(world.system);
  undo();
  expect(rows.restore()).toEqual(stored);
  expect(rows.take(world.system).changes.put.map((row) => row.kind)).toEqual(['system', 'cluster', 'vm']);
  expect(clusterid).toBe(0);
});

import { describe, expect, it } from 'vitest';
import { WaitRequest } from '@snowflock/protocol';
import { outcomes, waitState, type WaitState } from '../src/index.ts';
import { codeOf, World } from './world.ts';

const ALL = WaitRequest.parse({});

function forked(nclones: number): {
  world: World;
  clusterid: number;
  ticket: string;
  state: (wait?: Partial<WaitRequest>, nowMs?: number) => WaitState;
} {
  const world = new World({ hosts: 3, cpus: 8 });
  const clusterid = world.seed();
  const ticket = world.fork(clusterid, nclones);
  const state = (wait: Partial<WaitRequest> = {}, nowMs = 0): WaitState =>
    waitState(world.system, { clusterid, ticket }, { ...ALL, ...wait, sinceMs: 0, nowMs });
  return { world, clusterid, ticket, state };
}

const exited = (status = 0, resultBytes = 0) =>
  ({ how: 'exited', reason: 'ic_exit', status, resultBytes }) as const;

describe('outcomes', () => {
  it('tell how each clone ended, by vmid', () => {
    const { world, clusterid, ticket, state } = forked(4);
    world.do({ type: 'vm-ended', clusterid, vmid: 3, ended: exited(7, 1024) });
    world.do({ type: 'vm-ended', clusterid, vmid: 1, ended: { how: 'powered-off', reason: 'powered off' } });
    world.do({ type: 'vm-ended', clusterid, vmid: 2, ended: { how: 'lost', reason: 'QEMU crashed' } });
    expect(state()).toEqual({ kind: 'running', lookAgainMs: null });
    world.do({ type: 'vm-ended', clusterid, vmid: 4, ended: { how: 'exited', reason: 'ic_exit' } });
    expect(state()).toEqual({ kind: 'over' });
    expect(outcomes(world.system, { clusterid, ticket })).toEqual([
      { vmid: 1, how: 'ended', status: null, reason: 'powered off', resultBytes: 0 },
      { vmid: 2, how: 'lost', status: null, reason: 'QEMU crashed', resultBytes: 0 },
      { vmid: 3, how: 'exited', status: 7, reason: 'ic_exit', resultBytes: 1024 },
      { vmid: 4, how: 'exited', status: 0, reason: 'ic_exit', resultBytes: 0 },
    ]);
    // and again, until it is merged
    expect(state()).toEqual({ kind: 'over' });
    world.do({ type: 'merge', clusterid, ticket });
    expect(codeOf(() => state())).toBe('ticket-used');
  });

  it('count a clone that could not be started as lost', () => {
    const world = new World({ hosts: 1 });
    const clusterid = world.seed();
    const ticket = world.ticket(clusterid, 2);
    expect(
      codeOf(() => waitState(world.system, { clusterid, ticket }, { ...ALL, sinceMs: 0, nowMs: 0 })),
    ).toBe('ticket-unused');
    world.do({ type: 'redeem', clusterid, ticket });
    const clones = [
      { vmid: 1, ok: false, reason: 'no memory' },
      { vmid: 2, ok: true },
    ];
    world.do({ type: 'launched', clusterid, ticket, report: { clones } });
    world.do({ type: 'end-clones', clusterid, ticket, reason: 'enough' });
    expect(outcomes(world.system, { clusterid, ticket })).toMatchObject([
      { vmid: 1, how: 'lost', reason: 'no memory' },
      { vmid: 2, how: 'ended', reason: 'ended by a join: enough' },
    ]);
  });

  it('of a clone that exited while its host was cut off are told when it is back', () => {
    const { world, clusterid, ticket } = forked(1);
    world.do({ type: 'tick', nowMs: 60_000 });
    expect(outcomes(world.system, { clusterid, ticket })).toMatchObject([{ how: 'lost', status: null }]);
    // What was to be told comes before the host's own report.
    world.do({ type: 'vm-ended', clusterid, vmid: 1, ended: exited(3, 5) });
    expect(outcomes(world.system, { clusterid, ticket })).toMatchObject([
      { how: 'exited', status: 3, resultBytes: 5 },
    ]);
  });

  it('survive a restart of sfmd', () => {
    const { world, clusterid, ticket } = forked(2);
    world.do({ type: 'vm-ended', clusterid, vmid: 1, ended: exited(1, 9) });
    const hosts = Object.values(world.system.hosts).map(({ host, cpus, ramBytes }) => ({
      host,
      cpus,
      ramBytes,
    }));
    world.do({ type: 'restarted', hosts, clusterid: 0, nowMs: 0, unixMs: 0 });
    expect(outcomes(world.system, { clusterid, ticket })).toEqual([
      { vmid: 1, how: 'exited', status: 1, reason: 'ic_exit', resultBytes: 9 },
    ]);
  });
});

describe('a wait has enough', () => {
  it('when so many have exited, however; the rest are ended and their hosts asked to destroy them', () => {
    const { world, clusterid, ticket, state } = forked(4);
    world.do({ type: 'vm-ended', clusterid, vmid: 1, ended: exited(1) });
    world.do({ type: 'vm-ended', clusterid, vmid: 2, ended: { how: 'lost', reason: 'gone' } });
    expect(state({ count: 2 }).kind).toBe('running');
    world.do({ type: 'vm-ended', clusterid, vmid: 3, ended: exited(0) });
    const enough = state({ count: 2 });
    expect(enough).toEqual({ kind: 'enough', reason: '2 of 4 clones have exited' });
    const effects = world.do({ type: 'end-clones', clusterid, ticket, reason: '2 of 4 clones have exited' });
    expect(effects.map(({ type }) => type)).toEqual(['vm-ended', 'clean-up']);
    expect(state()).toEqual({ kind: 'over' });
    expect(outcomes(world.system, { clusterid, ticket }).map(({ how }) => how)).toEqual([
      'exited',
      'lost',
      'exited',
      'ended',
    ]);
    // What its host says later changes nothing.
    world.do({ type: 'vm-ended', clusterid, vmid: 4, ended: exited(5) });
    expect(outcomes(world.system, { clusterid, ticket })[3]).toMatchObject({ how: 'ended', status: null });
    world.clean();
    expect(world.system.clusters[clusterid]?.vms[4]).toMatchObject({ freed: true });
  });

  it('at its deadline', () => {
    const { state } = forked(2);
    expect(state({ deadlineMs: 500 }, 200)).toEqual({ kind: 'running', lookAgainMs: 300 });
    expect(state({ deadlineMs: 500 }, 500)).toEqual({ kind: 'enough', reason: 'it has waited for 0.5 s' });
    expect(state({ deadlineMs: 0 }, 0).kind).toBe('enough');
  });

  it('when the clones have run for so long together', () => {
    const { world, clusterid, state } = forked(4);
    expect(state({ budgetMs: 8000 }, 1000)).toEqual({ kind: 'running', lookAgainMs: 1000 });
    world.do({ type: 'tick', nowMs: 1000 });
    for (const vmid of [1, 2, 3]) world.do({ type: 'vm-ended', clusterid, vmid, ended: exited() });
    expect(state({ budgetMs: 8000 }, 1000)).toEqual({ kind: 'running', lookAgainMs: 4000 });
    expect(state({ budgetMs: 8000 }, 5000)).toEqual({
      kind: 'enough',
      reason: 'its clones have run for 8 s together',
    });
    expect(state({ budgetMs: 8000, deadlineMs: 10 }, 2000).kind).toBe('enough');
  });

  it('when they have run for so long together, whoever was sfmd meanwhile', () => {
    const { world, clusterid, state } = forked(4);
    const hosts = Object.values(world.system.hosts);
    world.do({ type: 'tick', nowMs: 1000 });
    world.do({ type: 'vm-ended', clusterid, vmid: 1, ended: exited() });
    // Its clock began when the last one's had come to 1500.
    world.do({ type: 'restarted', hosts, clusterid: 0, nowMs: 20, unixMs: 1520 });
    // 1000 + 3 × 2000
    expect(state({ budgetMs: 7300 }, 500)).toEqual({ kind: 'running', lookAgainMs: 100 });
    expect(state({ budgetMs: 7300 }, 600).kind).toBe('enough');
    world.do({ type: 'tick', nowMs: 1020 });
    for (const vmid of [2, 3]) world.do({ type: 'vm-ended', clusterid, vmid, ended: exited() });
    world.do({ type: 'restarted', hosts, clusterid: 0, nowMs: 0, unixMs: 3000 });
    // 1000 + 2 × 2520 + 3000
    expect(state({ budgetMs: 10_000 }, 0)).toEqual({ kind: 'running', lookAgainMs: 960 });
    // a clock that was set back
    world.do({ type: 'restarted', hosts, clusterid: 0, nowMs: 0, unixMs: -5000 });
    expect(state({ budgetMs: 10_000 }, 0)).toEqual({ kind: 'running', lookAgainMs: 3960 });
  });

  it('when they have returned so much', () => {
    const { world, clusterid, state } = forked(3);
    world.do({ type: 'vm-ended', clusterid, vmid: 1, ended: exited(0, 600) });
    expect(state({ budgetBytes: 1000 }).kind).toBe('running');
    world.do({ type: 'vm-ended', clusterid, vmid: 2, ended: exited(0, 600) });
    expect(state({ budgetBytes: 1000 })).toEqual({
      kind: 'enough',
      reason: 'its clones have returned 1200 bytes of results',
    });
  });
});

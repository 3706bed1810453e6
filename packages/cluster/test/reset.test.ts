import { describe, expect, it } from 'vitest';
import { findCluster, findResettable } from '../src/index.ts';
import { codeOf, World } from './world.ts';

describe('a clone that is to be reset', () => {
  it('runs, and has no tickets of its own', () => {
    const world = new World({ hosts: 2 });
    const clusterid = world.seed();
    const ticket = world.fork(clusterid, 2);
    const [vmid = -1, other = -1] = world.vmids(clusterid, ticket);
    const code = (of: number): string =>
      codeOf(() => findResettable(findCluster(world.system, clusterid), of));
    expect(code(vmid)).toBe('none');
    expect(code(0)).toBe('not-clone');
    expect(code(99)).toBe('no-such-vm');
    const asked = (of: number, by: number): string =>
      codeOf(() => findResettable(findCluster(world.system, clusterid), of, by));
    expect([asked(vmid, 0), asked(vmid, vmid)]).toEqual(['none', 'none']);
    expect([asked(vmid, other), asked(0, vmid)]).toEqual(['not-owner', 'not-owner']);
    expect(asked(0, 0)).toBe('not-clone');
    const own = world.ticket(clusterid, 1, vmid);
    expect(code(vmid)).toBe('tickets-outstanding');
    expect(code(other)).toBe('none');
    world.do({ type: 'dispose', clusterid, ticket: own });
    expect(code(vmid)).toBe('none');
    world.do({ type: 'vm-ended', clusterid, vmid: other, ended: { how: 'exited', reason: '' } });
    expect(code(other)).toBe('no-such-vm');
  });
});

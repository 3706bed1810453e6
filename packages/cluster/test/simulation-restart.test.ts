// sfmd restarted from its store at every possible step, under random work and failing hosts. A failure names its seed:
// SNOWFLOCK_SEED=N repeats it alone.

import { expect, it } from 'vitest';
import { hostUsage, vmsOf } from '../src/index.ts';
import { SimulatedSystem } from './simulated-system.ts';

const SEED = process.env['SNOWFLOCK_SEED'];

/** Steps of one run; with `restartAt` sfmd is killed after that one. */
function run(options: {
  seed: number;
  hosts: number;
  steps: number;
  restartAt: number | null;
  cpus?: number;
}): SimulatedSystem {
  const sim = new SimulatedSystem(options);
  try {
    for (let index = 0; index < options.steps; index++) {
      step(sim, { mayRestart: options.restartAt === null });
      if (index === options.restartAt) sim.restart();
      sim.checkHosts();
    }
    finish(sim);
  } catch (error) {
    const { seed, restartAt } = options;
    throw new Error(`seed ${seed}, restart after step ${restartAt}: ${String(error)}`, { cause: error });
  }
  return sim;
}

function step(sim: SimulatedSystem, { mayRestart }: { mayRestart: boolean }): void {
  const killed = mayRestart && sim.random() < 0.05;
  const guests = [...sim.guests.values()];
  const guest = sim.pick(guests);
  const tickets = (state: 'unused' | 'used'): string[] =>
    [...(guest?.tickets ?? [])].flatMap(([ticket, each]) => (each === state ? [ticket] : []));
  const { clusterid, vmid: by } = guest ?? { clusterid: 0, vmid: 0 };
  const host = sim.pick([...sim.hosts.values()]);
  const dice = sim.random();
  if (dice < 0.06 && guests.filter(({ vmid }) => vmid === 0).length < 6)
    sim.do(
      { type: 'seed', shape: { diskImage: 'micro', vcpus: 1 + (dice < 0.01 ? 1 : 0), memoryMib: 256 } },
      { killed },
    );
  else if (dice < 0.2 && guest)
    sim.ask(
      guest,
      sim.id(),
      {
        nclones: 1 + Math.floor(sim.random() * 9),
        procs: sim.random() < 0.2,
        min: sim.random() < 0.3 ? -1 : 0,
        block: sim.random() < 0.6,
      },
      { killed },
    );
  else if (dice < 0.3 && guest) {
    const ticket = sim.pick(tickets('unused'));
    if (ticket)
      sim.fork(guest, ticket, mayRestart ? (sim.pick(['redeem', 'launch', null, null, null]) ?? null) : null);
  } else if (dice < 0.38 && guest) {
    const ticket = sim.pick(tickets('used'));
    if (ticket && sim.do({ type: 'merge', clusterid, ticket, by }, { killed })) guest.tickets.delete(ticket);
  } else if (dice < 0.41 && guest) {
    const ticket = sim.pick(tickets('unused'));
    if (ticket && sim.do({ type: 'dispose', clusterid, ticket, by }, { killed }))
      guest.tickets.delete(ticket);
  } else if (dice < 0.43 && guest) {
    sim.do({ type: 'shutdown', clusterid, force: true, byGuest: false }, { killed });
  } else if (dice < 0.5 && host?.state === 'on') {
    const name = sim.pick([...host.vms.keys()]);
    const vmid = Number(name?.split(':')[1] ?? 0);
    if (name && vmid !== 0) {
      host.vms.delete(name);
      const ended = { how: 'exited' as const, reason: 'ic_exit' };
      sim.do({ type: 'vm-ended', clusterid: Number(name.split(':')[0]), vmid, ended }, { killed });
    }
  } else if (dice < 0.53 && host) {
    if (host.state !== 'on') host.state = 'on';
    else if (sim.random() < 0.5) host.state = 'cut';
    else {
      host.state = 'off';
      host.vms.clear();
      host.instance = sim.id();
    }
  } else if (dice < 0.55 && host?.state === 'on') {
    host.instance = sim.id(); // its sfld was restarted, and has taken over all it had
  } else if (dice < 0.65) {
    sim.pass(sim.random() < 0.2 ? 9000 : 2000);
  } else for (let times = 1 + sim.random() * 6; times > 0; times--) sim.deliver();
  if (killed) sim.restart();
}

/** All hosts are back, everybody finishes: who waited is answered, and in the end nothing is left anywhere. */
function finish(sim: SimulatedSystem): void {
  for (const host of sim.hosts.values()) host.state = 'on';
  const settle = (): void => {
    for (let times = 0; times < 4; times++) {
      sim.pass(4000);
      sim.deliverAll();
    }
  };
  settle();
  const waitingNow = (): number =>
    [...sim.guests.values()].reduce((sum, guest) => sum + guest.waiting.size, 0);
  for (let round = 0; waitingNow() > 0; round++) {
    expect(round, 'rounds until everybody who waited was answered').toBeLessThan(60);
    for (const cluster of Object.values(sim.system.clusters))
      if (!cluster.closing) sim.do({ type: 'merge-all', clusterid: cluster.clusterid });
    // The first in line may wait for the room of other clusters' master VMs.
    const others = Object.values(sim.system.clusters).filter(
      ({ clusterid, closing }) => !closing && clusterid !== sim.system.queue[0]?.clusterid,
    );
    if (round % 4 === 3 && others[0])
      sim.do({ type: 'shutdown', clusterid: others[0].clusterid, force: true, byGuest: false });
    settle();
  }
  for (const { clusterid } of Object.values(sim.system.clusters))
    sim.do({ type: 'shutdown', clusterid, force: true, byGuest: false });
  settle();
  expect({ ...sim.system, hosts: null }).toMatchObject({ clusters: {}, queue: [], cleanups: [] });
  for (const used of hostUsage(sim.system).values())
    expect(used).toEqual({ cpus: 0, ramBytes: 0, vms: 0, clones: 0 });
  for (const host of sim.hosts.values()) expect([...host.vms.keys()], `VMs on ${host.host}`).toEqual([]);
}

it('a restart after each single step of a run', { timeout: 60_000 }, () => {
  const seed = SEED === undefined ? Date.now() % 1e6 : Number(SEED);
  for (let restartAt = 0; restartAt < 120; restartAt++) run({ seed, hosts: 5, steps: 120, restartAt });
});

it('restarts at random instants, between the commit and everything after it', { timeout: 60_000 }, () => {
  const first = SEED === undefined ? Date.now() % 1e6 : Number(SEED);
  let grants = 0;
  let restarts = 0;
  for (let seed = first; seed < first + (SEED === undefined ? 150 : 1); seed++) {
    const sim = run({ seed, hosts: 1 + (seed % 9), steps: 150, restartAt: null });
    grants += sim.grants;
    restarts += sim.restarts;
  }
  // Something did happen.
  if (SEED === undefined) expect([grants > 500, restarts > 500]).toEqual([true, true]);
});

it('hundreds of hosts', { timeout: 60_000 }, () => {
  const seed = SEED === undefined ? Date.now() % 1e6 : Number(SEED);
  const sim = run({ seed, hosts: 300, steps: 150, restartAt: null, cpus: 2 });
  expect(Object.values(sim.system.clusters).flatMap(vmsOf)).toEqual([]);
});

// One round of chaos: clusters are seeded, fork, and are broken and mended meanwhile; then everything must be accounted for.
//
// What is claimed of each clone that sfmd knows: it runs and its memory is right, or sfmd says that it is lost, and why. What is
// claimed of each cluster: it is there, unless its master VM was killed. At the end nothing of any VM is left anywhere.

import { setTimeout as sleep } from 'node:timers/promises';
import type { VmState } from '@snowflock/protocol';
import { DetachedProgram } from '../support/detached-program.ts';
import { eventually } from '../support/deadline.ts';
import { PROBES, type Guest } from '../support/guest.ts';
import { HOST_FILES } from '../support/leftovers.ts';
import { MICRO, type TestLab } from '../support/test-lab.ts';
import { breakIt, filesOnDisks, mend, startDead } from './faults.ts';
import type { PlannedRound } from './schedule.ts';

const AREA_MIB = 16;
const SEED = 77;
/** A call in a guest, whatever happened to the daemons meanwhile. */
const CALL_MS = 90_000;
const SETTLE_MS = 60_000;
const CHECK_MS = 120_000;
const EMPTY_MS = 20_000;

export interface RoundResult {
  readonly clonesRight: number;
  readonly clonesLost: number;
  readonly clustersLost: number;
  readonly callsFailed: number;
}

interface Cluster {
  readonly master: Guest;
  readonly program: DetachedProgram;
}

export async function runRound(
  lab: TestLab,
  plan: PlannedRound,
  say: (line: string) => void,
): Promise<RoundResult> {
  const clusters = await Promise.all(plan.clones.map(() => seed(lab)));
  await Promise.all(clusters.map(({ program }, index) => program.tell(`clone ${plan.clones[index] ?? 1}`)));
  const broken = await breakAll(lab, plan, say);
  await sleep(plan.healAfterMs);
  await mend(lab);
  say(`mended after ${plan.healAfterMs} ms`);
  const outcomes = await Promise.all(clusters.map((cluster) => settle(lab, cluster, { broken, say })));
  const merging = clusters.flatMap((cluster, index) => {
    const ticket = outcomes[index]?.ticket;
    return ticket === undefined ? [] : [{ ...cluster, ticket }];
  });
  await Promise.all(merging.map(({ program, ticket }) => program.tell(`merge ${ticket}`)));
  if (plan.atMerge) {
    const { daemon, host } = plan.atMerge;
    const k = daemon === 'sfmd' ? 1 : host;
    await lab.killDaemon(k, daemon);
    say(`at the merge: ${daemon} of host ${k} killed`);
    await startDead(lab);
  }
  await Promise.all(merging.map((cluster) => merged(cluster, say)));
  await lab.reset();
  await eventually(EMPTY_MS, 'nothing to be left on the disks', async () => {
    const left = (await filesOnDisks(lab)).filter((file) => !HOST_FILES.test(file));
    if (left.length > 0) throw new Error(left.join('\n'));
  });
  const sum = (of: (outcome: Outcome) => number): number =>
    outcomes.reduce((total, outcome) => total + of(outcome), 0);
  return {
    clonesRight: sum((outcome) => outcome.right),
    clonesLost: sum((outcome) => outcome.lost),
    clustersLost: outcomes.filter((outcome) => outcome.gone).length,
    callsFailed: outcomes.filter((outcome) => outcome.failed).length,
  };
}

async function seed(lab: TestLab): Promise<Cluster> {
  const master = await lab.seed({ ...MICRO, memoryMib: 96 });
  const argv = [`${PROBES}/sfmemtest`, String(AREA_MIB), String(SEED)];
  const program = await DetachedProgram.start(master, argv);
  const line = await program.line();
  if (line !== 'filled') throw new Error(`sfmemtest in VM ${master.name} said '${line}'`);
  return { master, program };
}

async function breakAll(lab: TestLab, plan: PlannedRound, say: (line: string) => void): Promise<Set<string>> {
  const begin = performance.now();
  const broken = new Set<string>();
  for (const fault of plan.faults) {
    await sleep(Math.max(0, fault.afterMs - (performance.now() - begin)));
    say(`${Math.round(performance.now() - begin)} ms: ${fault.kind}: ${await breakIt(lab, fault)}`);
    broken.add(fault.kind);
  }
  return broken;
}

interface Outcome {
  readonly ticket: string | undefined;
  readonly right: number;
  readonly lost: number;
  readonly gone: boolean;
  readonly failed: boolean;
}

/** Waits for the call's answer, then for each clone's; checks all of it. */
async function settle(
  lab: TestLab,
  { master, program }: Cluster,
  { broken, say }: { broken: ReadonlySet<string>; say: (line: string) => void },
): Promise<Outcome> {
  if (!(await masterRuns(lab, master))) {
    if (!broken.has('kill-vm'))
      throw new Error(`cluster ${master.clusterid} is gone, and nobody killed a VM`);
    say(`cluster ${master.clusterid} is gone with its master VM`);
    return { ticket: undefined, right: 0, lost: 0, gone: true, failed: false };
  }
  const answer = await program.line(CALL_MS);
  say(`cluster ${master.clusterid}: ${answer}`);
  const ticket = /^master wrong=0 ticket=(\S+)$/.exec(answer)?.[1];
  if (ticket === undefined && !answer.startsWith('error '))
    throw new Error(`VM ${master.name} said: ${answer}`);
  let right = 0;
  let lost = 0;
  await Promise.all(
    (await settledClones(lab, master)).map(async (vm) => {
      if (vm.status !== 'running') {
        if (!vm.reason)
          throw new Error(`VM ${master.clusterid}:${vm.vmid} is ${vm.status}, and nobody says why`);
        say(`${master.clusterid}:${vm.vmid} is ${vm.status}: ${vm.reason}`);
        lost++;
      } else if (ticket !== undefined) {
        await checkMemory(lab, master.sibling(vm.vmid), say).then((ok) => (ok ? right++ : lost++));
      }
    }),
  );
  return { ticket, right, lost, gone: false, failed: ticket === undefined };
}

async function masterRuns(lab: TestLab, master: Guest): Promise<boolean> {
  return eventually(SETTLE_MS, `VM ${master.name} to run or to be gone`, async () => {
    const { clusters } = await lab.state();
    const vm = clusters
      .find(({ clusterid }) => clusterid === master.clusterid)
      ?.vms.find(({ vmid }) => vmid === 0);
    if (!vm || vm.status === 'lost' || vm.status === 'exited') return false;
    await master.run(['true']);
    return true;
  });
}

/** Clones of the cluster, once none of them is on its way any more. */
async function settledClones(lab: TestLab, master: Guest): Promise<VmState[]> {
  return eventually(SETTLE_MS, `the clones of cluster ${master.clusterid} to run or to be lost`, async () => {
    const { clusters } = await lab.state();
    const cluster = clusters.find(({ clusterid }) => clusterid === master.clusterid);
    const clones = (cluster?.vms ?? []).filter(({ vmid, status }) => vmid !== 0 && status !== 'destroyed');
    const outstanding = new Set(
      (cluster?.tickets ?? []).filter(({ status }) => status === 'outstanding').map(({ ticket }) => ticket),
    );
    const forked = clones.filter(({ ticket }) => ticket !== null && outstanding.has(ticket));
    const early = forked.find(({ status }) => status === 'preparing' || status === 'booting');
    if (early) throw new Error(`VM ${master.clusterid}:${early.vmid} is ${early.status}`);
    return forked;
  });
}

/** True: every page was right. False: it was lost meanwhile, and sfmd says so. */
async function checkMemory(lab: TestLab, clone: Guest, say: (line: string) => void): Promise<boolean> {
  const path = `/run/sfmemtest.${clone.vmid}`;
  const told = await eventually(CHECK_MS, `${path} in VM ${clone.name}`, async () => {
    const vm = await lab.vm(clone);
    if (vm?.status === 'lost' && vm.reason) return `lost: ${vm.reason}`;
    return clone.run(['cat', path]);
  });
  if (told === `${clone.vmid} wrong=0 pages=${AREA_MIB * 256}`) return true;
  if (!told.startsWith('lost: ')) throw new Error(`the memory of VM ${clone.name}: ${told}`);
  say(`${clone.name} is ${told}`);
  return false;
}

/** What the guest's merge has come to; what it could not merge goes with the cluster. */
async function merged(
  { master, program, ticket }: Cluster & { readonly ticket: string },
  say: (line: string) => void,
): Promise<void> {
  const answer = await program.line(CALL_MS);
  say(`cluster ${master.clusterid}: ${answer}`);
  if (answer !== `merged ${ticket}` && !answer.startsWith('error '))
    throw new Error(`VM ${master.name} said: ${answer}`);
}

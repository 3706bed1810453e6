// Taking over what the sfld before this one owned, as its journal tells.
//
//   alive and whole ─▶ adopted: it runs on and is ours        else ─▶ told to sfmd as lost; sweep.ts removes what is left of it
//
// All at once (routers at once in the first instant, so that a master VM finds its own), and before anybody can ask anything of this sfld.

import { toSnowflockError, type VmRef } from '@snowflock/protocol';
import { logAbout } from '../log.ts';
import { CloneGroup, type CloneGroupPorts } from './clone-group.ts';
import type { HostContext } from './context.ts';
import { ForkSource } from './fork-source.ts';
import { exitedWith, type CloneExit, type JournalEntry } from './journal.ts';
import { MasterVm } from './master-vm.ts';
import { keepNothing, type Kept } from './sweep.ts';

export interface AdoptionPorts extends CloneGroupPorts {
  readonly onMaster: (master: MasterVm) => void;
  readonly onSource: (source: ForkSource) => void;
  readonly onGroup: (group: CloneGroup) => void;
}

/** Answers what is not to be swept. */
export async function adopt(context: HostContext, ports: AdoptionPorts): Promise<Kept> {
  const kept = keepNothing();
  const { journal, log, reports } = context;
  const { entries } = journal;
  const adopted = entries.map(async (entry) => {
    try {
      (await adoptOne(context, entry, ports)).keep(kept);
      return true;
    } catch (thrown) {
      const reason = toSnowflockError(thrown).message;
      const what = `the ${entry.kind} of the last sfld is not whole and goes`;
      logAbout(log, aboutOf(entry)).warn({ reason }, what);
      journal.remove(entry);
      for (const { vm, exit } of vmsOf(entry))
        void reports.ended(vm, exit ? exitedWith(exit) : { how: 'lost', reason });
      return false;
    }
  });
  const count = (await Promise.all(adopted)).filter(Boolean).length;
  if (entries.length > 0)
    log.info({ found: entries.length, adopted: count }, 'taken over from the last sfld');
  return kept;
}

async function adoptOne(
  context: HostContext,
  entry: JournalEntry,
  ports: AdoptionPorts,
): Promise<{ keep(kept: Kept): void }> {
  switch (entry.kind) {
    case 'master': {
      const master = await MasterVm.adopt(context, { entry, ...ports });
      ports.onMaster(master);
      return master;
    }
    case 'source': {
      const source = await ForkSource.adopt(context, entry);
      ports.onSource(source);
      return source;
    }
    case 'group': {
      const group = await CloneGroup.adopt(context, entry, ports);
      ports.onGroup(group);
      return group;
    }
    case 'router':
      return context.routers.adopt(entry);
  }
}

function aboutOf(entry: JournalEntry): { clusterid: number; ticket?: string } {
  if (entry.kind === 'group') return { clusterid: entry.request.clusterid, ticket: entry.request.ticket };
  return entry.kind === 'source'
    ? { clusterid: entry.clusterid, ticket: entry.ticket }
    : { clusterid: entry.clusterid };
}

function vmsOf(entry: JournalEntry): { vm: VmRef; exit: CloneExit | null }[] {
  if (entry.kind === 'source' || entry.kind === 'router') return [];
  if (entry.kind === 'master') return [{ vm: { clusterid: entry.clusterid, vmid: 0 }, exit: null }];
  const { clusterid } = entry.request;
  return entry.clones.map(({ vmid, exit }) => ({ vm: { clusterid, vmid }, exit }));
}

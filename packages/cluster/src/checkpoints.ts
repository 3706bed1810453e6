// The registry of checkpoints: which there are, which host holds each, and which clusters were started from it.
//
//   (asked) ─▶ writing ──written──▶ ready ◀──its host reports──▶ missing        writing ──failed──▶ (forgotten)
//                                     └──delete──▶ deleting ──its host has──▶ (forgotten)
//
// What lies on a host's disk is the truth: a host that is back, or that this sfmd has not seen before, tells what it holds.
// Invariant: a checkpoint that a cluster is fed from is not deleted.

import {
  CHECKPOINTS_PER_HOST_MAX,
  SnowflockError,
  type CheckpointInfo,
  type CheckpointWritten,
  type HeldCheckpoint,
  type VmRef,
} from '@snowflock/protocol';
import type { Effect } from './effects.ts';
import { forkReserveBytes } from './limits.ts';
import { findVm, openCluster } from './lookup.ts';
import { isEnded, type Checkpoint, type Host, type SystemData } from './state.ts';
import { hostRooms } from './views.ts';

export interface CheckpointRef {
  readonly name: string;
  readonly id: string;
}

export function findCheckpoint(system: SystemData, name: string): Checkpoint {
  const found = Object.hasOwn(system.checkpoints, name) ? system.checkpoints[name] : undefined;
  if (!found)
    throw new SnowflockError(
      'no-such-checkpoint',
      `there is no checkpoint '${name}'; 'snowflock checkpoint list' shows those there are`,
    );
  return found;
}

export interface CheckpointCommand extends CheckpointRef {
  readonly vm: VmRef;
  readonly description: string;
  readonly createdAtMs: number;
}

/** Registers a checkpoint that is about to be made. */
export function checkpoint(system: SystemData, command: CheckpointCommand): Effect[] {
  const { name, id, vm: ref, description, createdAtMs } = command;
  if (Object.hasOwn(system.checkpoints, name))
    throw new SnowflockError(
      'checkpoint-exists',
      `there is a checkpoint '${name}' already; delete it, or choose another name`,
    );
  const cluster = openCluster(system, ref.clusterid);
  const vm = findVm(cluster, ref.vmid);
  if (isEnded(vm) || vm.status === 'preparing')
    throw new SnowflockError(
      'no-such-vm',
      `VM ${ref.clusterid}:${ref.vmid} is ${vm.status}, so no checkpoint of it can be made`,
    );
  if (heldBy(system, vm.host).length >= CHECKPOINTS_PER_HOST_MAX)
    throw new SnowflockError(
      'no-resources',
      `host ${vm.host} holds ${CHECKPOINTS_PER_HOST_MAX} checkpoints, as many as it may; delete some`,
    );
  const { host, vcpus, memoryMib } = vm;
  const room = hostRooms(system).find((each) => each.host === host);
  const reserve = forkReserveBytes(system.limits, memoryMib);
  if (room && room.ramFreeBytes < reserve)
    throw new SnowflockError(
      'no-resources',
      `host ${host} has less than ${reserve / (1 << 20)} MiB free, which a checkpoint of VM ${ref.clusterid}:${ref.vmid} needs while it is written`,
    );
  system.checkpoints[name] = {
    ...{ name, id, description, createdAtMs, host, vm: `${ref.clusterid}:${ref.vmid}` },
    shape: { ...cluster.shape, vcpus, memoryMib },
    accel: system.hosts[host]?.accel ?? 'tcg',
    ...{ diskBytes: cluster.diskBytes, presentPages: 0, sizeBytes: 0, status: 'writing' },
  };
  return [{ type: 'write-checkpoint', ...ref, name, id, host, description }];
}

/** A host has it on its disk, or never will. One that nobody knows (any more) is registered: it is there. */
export function checkpointWritten(
  system: SystemData,
  { name, host, written }: { name: string; host: string; written: CheckpointWritten },
): Effect[] {
  const known = Object.hasOwn(system.checkpoints, name) ? system.checkpoints[name] : undefined;
  if (written.ok) {
    const { held } = written;
    if (known && (known.id !== held.id || known.host !== host || known.status !== 'writing')) return [];
    system.checkpoints[name] = { ...held, host, status: 'ready' };
    return [{ type: 'checkpoint-ready', name, host, sizeBytes: held.sizeBytes }];
  }
  if (known?.id !== written.id || known.host !== host || known.status !== 'writing') return [];
  return notWritten(system, known, written.reason);
}

function notWritten(system: SystemData, { name, id, host }: Checkpoint, reason: string): Effect[] {
  delete system.checkpoints[name];
  return [{ type: 'checkpoint-failed', name, id, host, reason }];
}

/** Whether their hosts were asked at all is not known; those that are finished all the same are registered then. */
export function forgetUnwritten(system: SystemData): Effect[] {
  return Object.values(system.checkpoints)
    .filter(({ status }) => status === 'writing')
    .flatMap((each) => notWritten(system, each, 'sfmd was restarted while it was being written'));
}

/** From now on nothing is started from it. With `force` also when its host is down: it is forgotten then. */
export function deleteCheckpoint(
  system: SystemData,
  { name, force }: { name: string; force: boolean },
): Effect[] {
  const known = findCheckpoint(system, name);
  const users = usersOf(system, known);
  if (users.length > 0)
    throw new SnowflockError(
      'checkpoint-in-use',
      `checkpoint '${name}' feeds cluster ${users.join(', ')}; shut that down first`,
    );
  const isUp = system.hosts[known.host]?.up === true;
  if (!isUp && !force)
    throw new SnowflockError(
      'host-down',
      `host ${known.host}, which holds checkpoint '${name}', is down; start sfld there, or forget the checkpoint with --force`,
    );
  if (known.status === 'writing' && isUp)
    throw new SnowflockError(
      'checkpoint-in-use',
      `checkpoint '${name}' is being written on host ${known.host}; wait until it is ready`,
    );
  known.status = 'deleting';
  return [];
}

/** Its host has deleted it, or (`kept`) has not. */
export function checkpointDeleted(
  system: SystemData,
  { name, id, kept }: CheckpointRef & { kept: boolean },
): Effect[] {
  const known = system.checkpoints[name];
  if (known?.id !== id || known.status !== 'deleting') return [];
  if (kept) {
    known.status = 'ready';
    return [];
  }
  delete system.checkpoints[name];
  return [{ type: 'checkpoint-deleted', name, host: known.host }];
}

/** Where a new cluster may be started from it. Throws when it cannot be. */
export function seedableCheckpoint(system: SystemData, name: string): Checkpoint {
  const known = findCheckpoint(system, name);
  const unusable = (code: 'unavailable' | 'no-such-checkpoint' | 'host-down', why: string): never => {
    throw new SnowflockError(code, `checkpoint '${name}' ${why}`);
  };
  if (known.status === 'writing')
    unusable('unavailable', `is still being written on host ${known.host}; try again when it is ready`);
  if (known.status === 'deleting') unusable('no-such-checkpoint', 'is being deleted');
  if (known.status === 'missing')
    unusable('no-such-checkpoint', `is no longer on the disk of host ${known.host}, which held it`);
  if (system.hosts[known.host]?.up !== true)
    unusable('host-down', `is on host ${known.host}, which is down; start sfld there`);
  return known;
}

/**
 * A host has told what it holds. `fresh`: after its start or silence; then what is not listed is missing, and what nobody knows is
 * registered.
 */
export function checkpointsReported(
  system: SystemData,
  { host, held, fresh }: { host: Host; held: readonly HeldCheckpoint[]; fresh: boolean },
): Effect[] {
  const effects: Effect[] = [];
  const listed = new Map(held.map((each) => [each.name, each]));
  for (const known of heldBy(system, host.host)) {
    const found = listed.get(known.name);
    listed.delete(known.name);
    if (found?.id === known.id) {
      if (known.status === 'writing' || known.status === 'missing')
        system.checkpoints[known.name] = { ...known, ...found, status: 'ready' };
    } else if (!fresh) continue;
    else if (known.status === 'writing') {
      const reason = `sfld of host ${host.host} was restarted while it was being written`;
      effects.push(...notWritten(system, known, reason));
    } else if (known.status === 'deleting') delete system.checkpoints[known.name];
    else known.status = 'missing';
  }
  if (fresh)
    for (const found of listed.values())
      if (!Object.hasOwn(system.checkpoints, found.name))
        system.checkpoints[found.name] = { ...found, host: host.host, status: 'ready' };
  return effects;
}

export function checkpointInfo(system: SystemData, known: Checkpoint): CheckpointInfo {
  const { status, ...rest } = known;
  return {
    ...rest,
    status: status === 'deleting' ? 'missing' : status,
    hostUp: system.hosts[known.host]?.up === true,
    usedBy: usersOf(system, known),
  };
}

export function checkpointList(system: SystemData): CheckpointInfo[] {
  return Object.values(system.checkpoints)
    .sort((a, b) => a.createdAtMs - b.createdAtMs || a.name.localeCompare(b.name))
    .map((each) => checkpointInfo(system, each));
}

function heldBy(system: SystemData, host: string): Checkpoint[] {
  return Object.values(system.checkpoints).filter((each) => each.host === host);
}

/** A cluster counts until its last host has confirmed its end: until then pages may be fetched. */
function usersOf(system: SystemData, { id }: Checkpoint): number[] {
  return Object.values(system.clusters).flatMap(({ clusterid, checkpoint: use }) =>
    use?.id === id ? [clusterid] : [],
  );
}

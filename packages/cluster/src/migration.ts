// A VM is taken to another host: it stays who it is, the owner of its tickets, and where its clones return to.
//
// Which of the two hosts has it is decided by them (daemon/src/sfld/move-vm.ts); here it is on the one that it was on until that is told.

import { SnowflockError } from '@snowflock/protocol';
import { prepareSource, type Effect } from './effects.ts';
import { forkReserveBytes } from './limits.ts';
import { findCluster, findHost, findVm, openCluster } from './lookup.ts';
import { endMigration, movingOf } from './migration-end.ts';
import { isEnded, ticketsOf, vmRamBytes } from './state.ts';
import type { Cluster, Host, Migration, SystemData, TicketRef, Vm } from './state.ts';
import { hostRooms } from './views.ts';

export interface MigrateCommand {
  readonly clusterid: number;
  readonly vmid: number;
  readonly host: string;
  /** What its memory is fetched under. */
  readonly ticket: string;
}

/** Reserves what it needs there. */
export function migrate(
  system: SystemData,
  { clusterid, vmid, host: name, ticket }: MigrateCommand,
): Effect[] {
  const cluster = openCluster(system, clusterid);
  const vm = findVm(cluster, vmid);
  const host = findHost(system, name);
  refuseVm(cluster, vm);
  refuseHost(system, { cluster, vm, host });
  const { vcpus, memoryMib, host: from } = vm;
  const migration = {
    ...{ ticket, vmid, vcpus, memoryMib, from, to: name },
    ...{ moved: false, ending: false, held: [from, name] },
  };
  cluster.migrations[ticket] = migration;
  return [migrateEffect(cluster, migration)];
}

function refuseVm(cluster: Cluster, vm: Vm): void {
  const name = `VM ${cluster.clusterid}:${vm.vmid}`;
  if (vm.status !== 'running')
    throw new SnowflockError('no-such-vm', `${name} is ${vm.status}, so it cannot be migrated`);
  const under = Object.values(cluster.migrations).find((each) => each.vmid === vm.vmid);
  if (!under) return;
  const { from, to, moved, ending } = under;
  if (ending)
    throw new SnowflockError(
      'busy',
      `what the last migration of ${name} has left on host ${under.held.join(' and ')} is still being cleaned up; try again later`,
    );
  throw new SnowflockError(
    'busy',
    moved
      ? `${name} has been migrated, and its memory is still being fetched from host ${from}; try again later`
      : `${name} is being migrated from host ${from} to host ${to} already`,
  );
}

function refuseHost(
  system: SystemData,
  { cluster, vm, host: { host, up, accel } }: { cluster: Cluster; vm: Vm; host: Host },
): void {
  const name = `VM ${cluster.clusterid}:${vm.vmid}`;
  if (vm.host === host) throw new SnowflockError('bad-request', `${name} is on host ${host} already`);
  if (!up) throw new SnowflockError('host-down', `host ${host} is down, so ${name} stays on host ${vm.host}`);
  const ownAccel = system.hosts[vm.host]?.accel ?? null;
  if (accel !== ownAccel)
    throw new SnowflockError(
      'bad-request',
      `${name} computes by ${ownAccel ?? 'nothing'} and host ${host} by ${accel ?? 'nothing'}, where it could not go on`,
    );
  // The files of its disk have the same names there.
  const left = Object.values(cluster.frozen).find(
    (image) => image.host === host && (cluster.tickets[image.ticket]?.owner ?? vm.vmid) === vm.vmid,
  );
  if (left)
    throw new SnowflockError(
      'busy',
      `host ${host} still keeps what the clones of ticket ${left.ticket} of ${name} were forked from; merge or join it first`,
    );
  const rooms = new Map(hostRooms(system).map((room) => [room.host, room]));
  const room = rooms.get(host);
  const ramBytes = vmRamBytes(vm);
  if (!room || room.cpusFree < vm.vcpus || room.ramFreeBytes < ramBytes || room.vmsFree < 1)
    throw new SnowflockError(
      'no-resources',
      `host ${host} has no room for ${name}, which needs ${vm.vcpus} cpus and ${vm.memoryMib} MiB: ` +
        `${room?.cpusFree ?? 0} cpus and ${Math.floor((room?.ramFreeBytes ?? 0) / (1 << 20))} MiB are free`,
    );
  const reserveBytes = forkReserveBytes(system.limits, cluster.shape.memoryMib);
  if ((rooms.get(vm.host)?.ramFreeBytes ?? 0) < reserveBytes)
    throw new SnowflockError(
      'no-resources',
      `host ${vm.host} has no memory left for the snapshot that ${name} is migrated by`,
    );
}

function migrateEffect(cluster: Cluster, { ticket, vmid, vcpus, from, to }: Migration): Effect {
  const { clusterid, shape, diskBytes } = cluster;
  const origin = cluster.tickets[cluster.vms[vmid]?.ticket ?? ''];
  return {
    ...{ type: 'migrate', clusterid, vmid, vcpus, ticket, from, to, shape, diskBytes },
    origin: origin ? { ticket: origin.ticket, parentHost: ownerHost(cluster, origin.owner) } : null,
  };
}

function ownerHost(cluster: Cluster, owner: number): string {
  return findVm(cluster, owner).host;
}

/** It runs on the other host. Told by both; the second time changes nothing. */
export function migrated(system: SystemData, { clusterid, ticket: id }: TicketRef): Effect[] {
  const cluster = findCluster(system, clusterid);
  const migration = cluster.migrations[id];
  if (!migration || (migration.ending && !migration.moved))
    throw new SnowflockError('no-such-vm', `the VM of migration ${id} was given up`);
  if (migration.moved) return [];
  const { vmid, from, to } = migration;
  const vm = findVm(cluster, vmid);
  Object.assign(migration, { moved: true, held: [from] });
  Object.assign(vm, { host: to, missingSinceMs: null });
  // The host that it has left fell silent meanwhile.
  if (isEnded(vm) && vm.unreachable)
    Object.assign(vm, { status: 'running', reason: null, unreachable: false, ranMs: null });
  const effects: Effect[] = [{ type: 'vm-migrated', clusterid, vmid, from, to }];
  for (const ticket of ticketsOf(cluster, vm)) {
    if (ticket.status !== 'unused') continue;
    cluster.frozen[ticket.ticket] = { ticket: ticket.ticket, host: to };
    Object.assign(ticket, { sourcePreparing: true, sourceError: null });
    effects.push(prepareSource(cluster, ticket));
  }
  return effects;
}

/** It stays where it was. */
export function migrateFailed(system: SystemData, { clusterid, ticket }: TicketRef): Effect[] {
  const cluster = system.clusters[clusterid];
  const migration = cluster?.migrations[ticket];
  if (!cluster || !migration || migration.moved || migration.ending) return [];
  return endMigration(system, cluster, migration);
}

/** All of its memory and disk is where it is; the host that it has left may forget it. */
export function migrationFetched(system: SystemData, { clusterid, ticket }: TicketRef): Effect[] {
  const cluster = system.clusters[clusterid];
  const migration = cluster?.migrations[ticket];
  if (!cluster || !migration?.moved || migration.ending) return [];
  return endMigration(system, cluster, migration);
}

/** After a restart of sfmd: what was under way is asked for again, which changes nothing if it is over. */
export function migrateAgain(cluster: Cluster): Effect[] {
  return Object.values(cluster.migrations)
    .filter(({ vmid, ticket }) => movingOf(cluster, vmid)?.ticket === ticket)
    .map((each) => migrateEffect(cluster, each));
}

/** Of hosts that are no longer configured. */
export function migrationsWithout(system: SystemData, host: string): Effect[] {
  return Object.values(system.clusters).flatMap((cluster) =>
    Object.values(cluster.migrations)
      .filter((each) => !each.ending && (each.moved ? each.from : each.to) === host)
      .flatMap((each) => endMigration(system, cluster, each)),
  );
}

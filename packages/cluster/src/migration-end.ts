// What remains of migrations, and how they end; beginning and success are in migration.ts.

import { openCleanup, type Effect } from './effects.ts';
import type { Cleanup, Cluster, Migration, SystemData, Vm } from './state.ts';

/** The migration of a VM that is under way and has not come to anything yet. */
export function movingOf(cluster: Cluster, vmid: number): Migration | undefined {
  return Object.values(cluster.migrations).find((each) => each.vmid === vmid && !each.moved && !each.ending);
}

/** Whether a host may have a VM that runs elsewhere: it is coming, or has just gone. */
export function isMigrating(cluster: Cluster | undefined, vmid: number, host: string): boolean {
  return Object.values(cluster?.migrations ?? {}).some(
    (each) => each.vmid === vmid && each.held.includes(host),
  );
}

/** Nothing of it is needed any more. */
export function endMigration(system: SystemData, cluster: Cluster, migration: Migration): Effect[] {
  migration.ending = true;
  const { clusterid } = cluster;
  const { ticket } = migration;
  return migration.held.flatMap((host) => openCleanup(system, { host, clusterid, ticket, vmid: null }));
}

/** Of a VM that has ended. */
export function endMigrationOf(system: SystemData, cluster: Cluster, { vmid }: Vm): Effect[] {
  return Object.values(cluster.migrations)
    .filter((each) => each.vmid === vmid && !each.ending)
    .flatMap((each) => endMigration(system, cluster, each));
}

/** A host has nothing of it any more. */
export function migrationCleaned(cluster: Cluster, { host, ticket }: Cleanup): void {
  for (const each of Object.values(cluster.migrations)) {
    if (ticket !== null && ticket !== each.ticket) continue;
    each.held = each.held.filter((one) => one !== host);
    if (each.held.length === 0) delete cluster.migrations[each.ticket];
  }
}

// snowflock merge TICKET|VM

import { Command } from 'commander';
import { parseVmRef, SnowflockError, ticketId, type VmRef } from '@snowflock/protocol';
import type { System } from '@snowflock/sdk';
import { openSystem, SOCKET_OPTION } from '../sfld-socket.ts';

export function mergeCommand(): Command {
  return new Command('merge')
    .summary('destroy the clones of a ticket, or of a VM')
    .description(
      'Destroys the clones that were made with a ticket, or all clones of a VM, and theirs. All their disk state is lost.\n' +
        'Unused tickets of a VM are disposed of.',
    )
    .argument('<what>', 'a ticket, or CLUSTERID:VMID; sfstate lists them')
    .option(...SOCKET_OPTION)
    .action(async (what: string, options: { socket?: string }) => {
      await using system = openSystem(options);
      const ticket = ticketId.safeParse(what).data;
      const owner = ticket === undefined ? parseVmRef(what) : await ownerOf(system, ticket);
      await system.vm(owner).mergeClones(ticket);
    });
}

async function ownerOf(system: System, ticket: string): Promise<VmRef> {
  for (const { clusterid, tickets } of (await system.state()).clusters)
    for (const each of tickets) if (each.ticket === ticket) return { clusterid, vmid: each.owner };
  throw new SnowflockError('no-such-ticket', `no cluster has ticket ${ticket}; sfstate lists those in use`);
}

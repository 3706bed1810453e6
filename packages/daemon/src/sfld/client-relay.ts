// Clients of commands and consoles of a VM that has gone to another host: their connections stay with this sfld, which carries the bytes on.
//
// Why not have them connect anew: what a client has sent is partly in this host's buffers, so it would have to come by way of here in any case,
// and every client would need to know of migration. The price: a session lasts no longer than this sfld.

import type { Duplex } from 'node:stream';
import { formatVmRef, toSnowflockError, type SendVm, type VmRef } from '@snowflock/protocol';
import { joinConnections } from '../join-connections.ts';
import { logAbout } from '../log.ts';
import type { HostContext } from './context.ts';

/** The VM runs there already: only its sfld may be busy. */
const CONNECT_TIMEOUT_MS = 20_000;
/** How long the next host expects a client: longer than this one may need to learn that the VM runs there (move-vm.ts), and to connect. */
export const EXPECTED_TIMEOUT_MS = 60_000;

/** What is left of a client that was let go of. */
export interface LetGo {
  readonly connection: Duplex;
  /** What was read of it but not made use of yet. */
  readonly rest: Buffer;
  /** What the next host expects it under; null: as a new one. */
  readonly token: string | null;
}

/** Calls back for each client, at once or later, when nothing more of the VM that ran here is to be told to it. */
interface Clients {
  readonly letGo: (relay: (client: LetGo) => void) => void;
}

interface RelayedVm {
  readonly ref: VmRef;
  readonly port: { readonly exec: Clients };
  readonly console: Clients;
}

/** Returns at once. `held`: the VM's agent was, so that its sessions have gone along. A client that cannot be brought there is cut off, and sees that its connection ended too early. */
export function relayClients(
  context: HostContext,
  { vm, to, held }: { readonly vm: RelayedVm; readonly to: SendVm['to']; readonly held: boolean },
): void {
  const relay = (what: 'exec' | 'console', client: LetGo): void => {
    carryOn(context, { ref: vm.ref, to, what, client }).catch((thrown: unknown) => {
      client.connection.destroy();
      const fields = { host: to.host, what, reason: toSnowflockError(thrown).message };
      logAbout(context.log, vm.ref).warn(fields, 'a client is cut off by the migration of its VM');
    });
  };
  if (held) vm.port.exec.letGo((client) => relay('exec', client));
  vm.console.letGo((client) => relay('console', client));
}

async function carryOn(
  { peers }: HostContext,
  { ref, to, what, client }: { ref: VmRef; to: SendVm['to']; what: 'exec' | 'console'; client: LetGo },
): Promise<void> {
  const { connection, rest, token } = client;
  const signal = peers.downSignal(to.host);
  const remote = await peers.client({ host: to.host, address: to.address, port: to.sfldPort }).upgrade({
    path: `/v1/vms/${formatVmRef(ref)}/${what}?relayed=1${token === null ? '' : `&expected=${token}`}`,
    protocol: `snowflock-${what}`,
    timeoutMs: CONNECT_TIMEOUT_MS,
    signal,
  });
  if (connection.destroyed) return void remote.destroy();
  remote.write(rest);
  await joinConnections(connection, remote, { signal });
}

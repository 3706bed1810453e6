// Exec clients of a VM that has gone to another host: their connections stay with this sfld, which carries the bytes on.
//
// Why not have them connect anew: what a client has sent is partly in this host's buffers, so it would have to come by way of here in any case,
// and every client would need to know of migration. The price: a session lasts no longer than this sfld.

import { formatVmRef, toSnowflockError, type SendVm, type VmRef } from '@snowflock/protocol';
import { joinConnections } from '../join-connections.ts';
import { logAbout } from '../log.ts';
import type { HostContext } from './context.ts';
import type { LetGo } from './exec-client.ts';
import type { ExecSessions } from './exec-sessions.ts';

/** The VM runs there already: only its sfld may be busy. */
const CONNECT_TIMEOUT_MS = 20_000;

/** Returns at once. A client that cannot be brought there is cut off, and sees that its connection ended before its command. */
export function relayExecClients(
  context: HostContext,
  { vm, to }: { readonly vm: RelayedVm; readonly to: SendVm['to'] },
): void {
  const { ref } = vm;
  for (const client of vm.port.exec.letGo())
    relay(context, { ref, to, client }).catch((thrown: unknown) => {
      client.connection.destroy();
      const fields = { host: to.host, reason: toSnowflockError(thrown).message };
      logAbout(context.log, ref).warn(fields, 'a client of a command is cut off by the migration of its VM');
    });
}

interface RelayedVm {
  readonly ref: VmRef;
  readonly port: { readonly exec: Pick<ExecSessions, 'letGo'> };
}

async function relay(
  { peers }: HostContext,
  { ref, to, client }: { readonly ref: VmRef; readonly to: SendVm['to']; readonly client: LetGo },
): Promise<void> {
  const { connection, rest, token } = client;
  const signal = peers.downSignal(to.host);
  const remote = await peers.client({ host: to.host, address: to.address, port: to.sfldPort }).upgrade({
    path: `/v1/vms/${formatVmRef(ref)}/exec?relayed=1${token === null ? '' : `&expected=${token}`}`,
    protocol: 'snowflock-exec',
    timeoutMs: CONNECT_TIMEOUT_MS,
    signal,
  });
  if (connection.destroyed) return void remote.destroy();
  remote.write(rest);
  await joinConnections(connection, remote, { signal });
}

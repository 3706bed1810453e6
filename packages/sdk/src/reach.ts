// How a program reaches the daemons of a system.
//
//   on a host:   sfld's unix socket, which passes on to sfmd and to the other hosts what is theirs
//   elsewhere:   sfmd over mutual TLS, and for a VM the sfld of its host, with the same certificate
//
// Owns its clients; each keeps its connections.

import {
  ControlClient,
  type ControlRequest,
  SnowflockError,
  SystemState,
  type ControlTarget,
  type VmRef,
} from '@snowflock/protocol';

const STATE_TIMEOUT_MS = 10_000;

type RemoteTarget = Extract<ControlTarget, { address: string }>;

export interface Reach {
  /** Asks sfmd; the path begins after /v1. */
  ask<T>(request: ControlRequest<T>): Promise<T>;
  /** sfmd's events. */
  stream(options: Parameters<ControlClient['stream']>[0]): ReturnType<ControlClient['stream']>;
  /** A daemon that reaches this VM. */
  clientOf(vm: VmRef): Promise<ControlClient>;
  close(): void;
}

export function localReach(socketPath: string): Reach {
  const client = new ControlClient({ socketPath });
  const through = <T extends { readonly path: string }>(options: T): T => ({
    ...options,
    path: `/v1/master${options.path}`,
  });
  return {
    ask: (request) => client.request(through(request)),
    stream: (options) => client.stream(through(options)),
    clientOf: () => Promise.resolve(client),
    close: () => client.close(),
  };
}

export function remoteReach(target: RemoteTarget): Reach {
  const master = new ControlClient(target);
  const hosts = new Map<string, ControlClient>();
  const to = <T extends { readonly path: string }>(options: T): T => ({
    ...options,
    path: `/v1${options.path}`,
  });
  const reach: Reach = {
    ask: (request) => master.request(to(request)),
    stream: (options) => master.stream(to(options)),
    async clientOf(vm) {
      const timeoutMs = STATE_TIMEOUT_MS;
      const state = await reach.ask({ method: 'GET', path: '/state', reply: SystemState, timeoutMs });
      const { host, address, port } = hostOf(state, vm);
      const key = `${host} ${address} ${port}`;
      const client = hosts.get(key) ?? new ControlClient({ tls: target.tls, host, address, port });
      hosts.set(key, client);
      return client;
    },
    close() {
      master.close();
      for (const client of hosts.values()) client.close();
    },
  };
  return reach;
}

/** Where the sfld of a VM's host listens. */
export function hostOf(
  state: SystemState,
  { clusterid, vmid }: VmRef,
): { host: string; address: string; port: number } {
  const vm = state.clusters
    .find((each) => each.clusterid === clusterid)
    ?.vms.find((each) => each.vmid === vmid);
  if (!vm) throw new SnowflockError('no-such-vm', `there is no VM ${clusterid}:${vmid}; sfstate lists them`);
  const host = state.hosts.find((each) => each.host === vm.host);
  if (!host?.up || host.address === null || host.sfldPort === null)
    throw new SnowflockError(
      'host-down',
      `host ${vm.host} of VM ${clusterid}:${vmid} is down; sfstate shows the hosts`,
    );
  return { host: host.host, address: host.address, port: host.sfldPort };
}

// What clones have fetched, joined to the state of the system: sfmd keeps none of it, the hosts are asked when somebody looks.

import { formatVmRef, type CloneRecord, type SystemState } from '@snowflock/protocol';

/** `clonesOn` answers for a host that is up; one that does not answer leaves its clones without. Never rejects. */
export async function withFetched(
  state: SystemState,
  clonesOn: (host: string) => Promise<readonly CloneRecord[]>,
): Promise<SystemState> {
  const up = state.hosts.filter((host) => host.up && host.vms > 0);
  const answers = await Promise.allSettled(up.map(({ host }) => clonesOn(host)));
  const records = answers.flatMap((answer) => (answer.status === 'fulfilled' ? answer.value : []));
  const known = new Map(
    records
      .filter(({ status, fetchedBytes }) => status === 'running' && fetchedBytes !== null)
      .map(({ fetchedBytes, waits, ...ref }) => [formatVmRef(ref), { bytes: fetchedBytes ?? 0, waits }]),
  );
  return {
    ...state,
    clusters: state.clusters.map((cluster) => ({
      ...cluster,
      vms: cluster.vms.map((vm) => {
        const fetched = known.get(formatVmRef({ clusterid: cluster.clusterid, vmid: vm.vmid }));
        return fetched ? { ...vm, fetched } : vm;
      }),
    })),
  };
}

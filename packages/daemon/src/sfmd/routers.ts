// What hosts tell of the routers of clusters: kept as they told it last, in memory, since they tell it again within seconds.

import { formatVmRef, type NetworkPolicy, type RouterInfo, type RouterReport } from '@snowflock/protocol';
import type { SystemData } from '@snowflock/cluster';
import type { Log } from '../log.ts';

export class RouterReports {
  readonly policy: NetworkPolicy;
  readonly #system: () => SystemData;
  readonly #log: Log;
  readonly #byHost = new Map<string, readonly RouterReport[]>();

  constructor(options: {
    readonly policy: NetworkPolicy;
    readonly system: () => SystemData;
    readonly log: Log;
  }) {
    this.policy = options.policy;
    this.#system = options.system;
    this.#log = options.log;
  }

  /** Answers which of the VMs with exposed ports are not there any more. */
  take(host: string, reports: readonly RouterReport[]): string[] {
    const before = new Map((this.#byHost.get(host) ?? []).map((each) => [each.clusterid, each.problem]));
    for (const { clusterid, problem } of reports) {
      const known = before.get(clusterid) ?? null;
      if (problem !== null && problem !== known)
        this.#log.warn(
          { host, clusterid, problem },
          'the router of a cluster is gone; the cluster reaches nothing',
        );
      if (problem === null && known !== null)
        this.#log.info({ host, clusterid }, 'the router is there again');
    }
    this.#byHost.set(host, reports);
    const exposed = reports.flatMap(({ clusterid, exposed }) =>
      exposed.map(({ vmid }) => ({ clusterid, vmid })),
    );
    const gone = exposed.filter(({ clusterid, vmid }) => !this.#runs(clusterid, vmid));
    return [...new Set(gone.map(formatVmRef))];
  }

  list(): RouterInfo[] {
    const { hosts } = this.#system();
    return [...this.#byHost].flatMap(([host, reports]) => {
      const known = hosts[host];
      return known?.up ? reports.map((report) => ({ ...report, host, address: known.address })) : [];
    });
  }

  #runs(clusterid: number, vmid: number): boolean {
    const status = this.#system().clusters[clusterid]?.vms[vmid]?.status;
    return status === 'booting' || status === 'running';
  }
}

// A cluster that a bench seeds in its lab, and that ends with it.

import type { Lab } from '@snowflock/lab';
import { NoReply, SeedReply, type VmShape } from '@snowflock/protocol';

const REQUEST_TIMEOUT_MS = 120_000;

export class BenchCluster implements AsyncDisposable {
  readonly clusterid: number;
  /** Where its master VM was started. */
  readonly host: string;
  readonly #lab: Lab;

  private constructor(lab: Lab, { clusterid, host }: SeedReply) {
    this.#lab = lab;
    this.clusterid = clusterid;
    this.host = host;
  }

  static async seed(lab: Lab, shape: VmShape): Promise<BenchCluster> {
    const reply = await lab.client(1).request({
      ...{ method: 'POST', path: '/v1/master/clusters', body: shape },
      ...{ reply: SeedReply, timeoutMs: REQUEST_TIMEOUT_MS },
    });
    return new BenchCluster(lab, reply);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#lab.client(1).request({
      ...{ method: 'DELETE', path: `/v1/master/clusters/${this.clusterid}?force=1` },
      ...{ reply: NoReply, timeoutMs: REQUEST_TIMEOUT_MS },
    });
  }
}

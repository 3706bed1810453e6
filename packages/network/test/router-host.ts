// A host for the tests of the router: runs in the host's namespace, does what it reads line by line, and says when it has.

import { createInterface } from 'node:readline';
import type { RouterSettings } from '@snowflock/protocol';
import {
  applyHostRouting,
  ClusterNetwork,
  removeHostRouting,
  RouterProcess,
  type HostRouting,
} from '../src/index.ts';

type Order =
  | { readonly do: 'start'; readonly clusterid: number }
  | { readonly do: 'set'; readonly clusterid: number; readonly settings: RouterSettings }
  | { readonly do: 'host'; readonly routing: HostRouting }
  | { readonly do: 'kill'; readonly clusterid: number }
  | { readonly do: 'attach'; readonly clusterid: number }
  | { readonly do: 'end'; readonly clusterid: number };

const [directory = '', localAddress = ''] = process.argv.slice(2);
const routers = new Map<number, RouterProcess>();
const networks: ClusterNetwork[] = [];

async function obey(order: Order): Promise<unknown> {
  if (order.do === 'host') return applyHostRouting(order.routing);
  const { clusterid } = order;
  const options = { clusterid, controlPath: `${directory}/router-${clusterid}` };
  const router = routers.get(clusterid);
  switch (order.do) {
    case 'start': {
      networks.push(await ClusterNetwork.open({ clusterid, localAddress, peers: [] }));
      const logPath = `${directory}/router.log`;
      const started = await RouterProcess.start({ ...options, logPath, onSpawned: () => undefined });
      routers.set(clusterid, started);
      return { pid: started.pid };
    }
    case 'attach':
      router?.detach();
      return void routers.set(clusterid, RouterProcess.attachTo({ ...options, pid: router?.pid ?? 0 }));
    case 'set':
      return router?.set(order.settings);
    case 'kill':
      if (router) process.kill(router.pid, 'SIGKILL');
      return router?.ended;
    case 'end':
      return router?.end();
  }
}

for await (const line of createInterface({ input: process.stdin })) {
  try {
    const value = await obey(JSON.parse(line) as Order);
    process.stdout.write(`${JSON.stringify({ ok: true, value })}\n`);
  } catch (error) {
    process.stdout.write(`${JSON.stringify({ ok: false, error: (error as Error).message })}\n`);
  }
}
for (const router of routers.values()) await router.end();
for (const network of networks) await network.close();
await removeHostRouting();

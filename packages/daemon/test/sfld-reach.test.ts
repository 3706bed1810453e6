import { createSocket } from 'node:dgram';
import { once } from 'node:events';
import { connect } from 'node:net';
import { expect, it } from 'vitest';
import { SystemState, type ReachListener } from '@snowflock/protocol';
import type { HostContext } from '../src/sfld/context.ts';
import { checkReach, listenForReach } from '../src/sfld/reach.ts';

const HOST = { up: true, accel: 'tcg', cpus: 1, cpusFree: 1, ramBytes: 1, ramFreeBytes: 1, vms: 0 } as const;

/** Two hosts on this machine: what the other's sfld would answer, and real sockets. */
function contextOf(options: { listener: () => Promise<ReachListener>; sfmd?: Error }): HostContext {
  const state = SystemState.parse({
    hosts: [
      { ...HOST, host: 'a', address: '127.0.0.1', sfldPort: 1 },
      { ...HOST, host: 'b', address: '127.0.0.1', sfldPort: 2 },
      { ...HOST, host: 'c', address: null, sfldPort: null, up: false, accel: null },
    ],
    clusters: [],
  });
  return {
    host: 'a',
    masterDaemon: { request: async () => (options.sfmd ? Promise.reject(options.sfmd) : state) },
    peers: { client: () => ({ request: options.listener }) },
  } as unknown as HostContext;
}

const short = (pairs: { to: string; part: string; state: string }[]): string[] =>
  pairs.map(({ to, part, state }) => `${to} ${part} ${state}`);

it('a host that is reached on every port, and one that was never there', async () => {
  const { pairs, clocks } = await checkReach(contextOf({ listener: () => listenForReach('127.0.0.1') }), {
    all: false,
  });
  // Whether VMs of this machine use the VXLAN port now decides if it can be tried.
  expect(short(pairs.filter(({ part }) => part !== 'vxlan')).sort()).toEqual([
    'b pages ok',
    'b sfld ok',
    'c sfld failed',
    'sfmd sfmd ok',
  ]);
  expect(pairs.find(({ part }) => part === 'vxlan')?.state).toMatch(/^(ok|untried)$/);
  expect(Math.abs(clocks[0]?.aheadMs ?? 1e9)).toBeLessThan(1000);
});

it('what does not answer is named: sfmd, the port of a memserver', async () => {
  const away = await checkReach(
    contextOf({ listener: () => listenForReach('127.0.0.1'), sfmd: new Error('no') }),
    { all: true },
  );
  expect(away.pairs).toEqual([{ from: 'a', to: 'sfmd', part: 'sfmd', state: 'failed', reason: 'no' }]);
  const closed = async (): Promise<ReachListener> => ({
    port: 1,
    vxlanInUse: true,
    nowMs: Date.now() + 90_000,
  });
  const { pairs, clocks } = await checkReach(contextOf({ listener: closed }), { all: false });
  expect(short(pairs)).toContain('b pages failed');
  expect(short(pairs)).toContain('b vxlan untried');
  expect(Math.round((clocks[0]?.aheadMs ?? 0) / 10_000)).toBe(9);
});

it('the listener greets whoever comes', async () => {
  const { port } = await listenForReach('127.0.0.1');
  const socket = connect({ host: '127.0.0.1', port });
  expect(String((await once(socket, 'data'))[0])).toBe('snowflock\n');
  socket.destroy();
});

it('a closed UDP port answers that it is closed: what the check of VXLAN rests on', async () => {
  const bound = createSocket('udp4').bind(0, '127.0.0.1');
  await once(bound, 'listening');
  const { port } = bound.address();
  bound.close();
  const socket = createSocket('udp4');
  socket.connect(port, '127.0.0.1', () => socket.send('x'));
  expect(await once(socket, 'error')).toMatchObject([{ code: 'ECONNREFUSED' }]);
  socket.close();
});

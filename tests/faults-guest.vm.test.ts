// Peers that do not keep to the rules: a guest that writes nonsense into its channel, and a stranger at a memserver.

import { describe, expect, it } from 'vitest';
import { eventually, patient } from './support/deadline.ts';
import { MemoryTest } from './support/memtest.ts';
import { requireVm } from './require-vm.ts';
import { MICRO, sharedLab } from './support/test-lab.ts';

const RUN = requireVm();
const NOTICED_MS = 15_000;
const AREA_MIB = 40;

/** Ends the agent, which holds the port, and writes to it what no agent writes. */
const GARBAGE = `cat > /tmp/garbage <<'END'
  killall -9 sfagent
  while :; do dd if=/dev/urandom of=/dev/virtio-ports/snowflock bs=4096 count=16 && touch /run/wrote; usleep 1000; done
END
setsid sh /tmp/garbage >/dev/null 2>&1 </dev/null &`;

/** Talks to a memserver: prints how many bytes come before it closes, after the hello. */
const STRANGER = `
import { connect } from 'node:net';
const [address, port, proof] = process.argv.slice(-3);
const socket = connect(Number(port), address);
let bytes = 0;
const begin = Date.now();
socket.on('error', () => {});
socket.on('data', (chunk) => {
  if (bytes === 0 && proof !== 'none') socket.write(Buffer.alloc(64 + 20 * 50, proof === 'zero' ? 0 : 0x5f));
  bytes += chunk.length;
});
const timer = setTimeout(() => socket.destroy(), 12000);
socket.on('close', () => {
  clearTimeout(timer);
  console.log(JSON.stringify({ bytes, ms: Date.now() - begin }));
});
`;

describe.skipIf(!RUN)('a peer that breaks the rules', () => {
  const lab = sharedLab({ hosts: 2, cpus: 6, ramMib: 2048 });

  it.each(['clone', 'master VM'])('as guest, a %s, loses its channel and harms nobody', async (which) => {
    const master = await lab().seed();
    const { ticket, clones } = await lab().fork(master, 2);
    const [clone, other] = clones;
    if (!clone || !other) throw new Error('no clones');
    const daemons = [1, 2].map((k) => lab().lab.daemonPid(k, 'sfld'));
    const bad = which === 'clone' ? clone : master;
    await bad.sh(GARBAGE).catch(() => undefined); // the agent that runs it is killed
    await eventually(NOTICED_MS, 'word of the end of the channel', async () => {
      const error: unknown = await bad
        .exec(['true'], { deadlineMs: 2000 })
        .catch((thrown: unknown) => thrown);
      expect(String(error)).toMatch(/the guest cannot be reached: the guest broke the rules of its channel/);
    });
    expect([1, 2].map((k) => lab().lab.daemonPid(k, 'sfld'))).toEqual(daemons);
    const well = [master, clone, other].filter((vm) => vm !== bad);
    for (const vm of well) expect(await vm.run(['hostname'])).toBe(`sf-${vm.clusterid}-${vm.vmid}`);
    expect(await lab().vm(bad)).toMatchObject({ status: 'running' });
    if (bad === master) return;
    await master.run(['sfmerge', ticket]);
    expect((await lab().fork(master, 1)).clones.length).toBe(1);
  });

  it('without the key of a fork gets no page', async () => {
    const master = await lab().seed({ ...MICRO, memoryMib: 128 });
    await using memory = await MemoryTest.start(lab(), master, { areaMib: AREA_MIB });
    const { clones } = await memory.fork(2);
    const home = await lab().hostOf(master);
    const [pid] = await lab().pids(home, 'memserver/main.ts');
    const { stdout } = await lab().lab.exec(home, ['ss', '-Hltnp']);
    const line = stdout.split('\n').find((each) => each.includes(`pid=${pid},`));
    const [, address = '', port = ''] = /(\d+\.\d+\.\d+\.\d+):(\d+)/.exec(line ?? '') ?? [];
    expect(address).toBe(lab().lab.hosts[home - 1]?.address);
    for (const proof of ['zero', 'other', 'none']) {
      const argv = [process.execPath, '--input-type=module', '-e', STRANGER, '--', address, port, proof];
      const answer = await lab().lab.exec(home === 1 ? 2 : 1, argv);
      const { bytes, ms } = JSON.parse(answer.stdout) as { bytes: number; ms: number };
      expect(bytes).toBe(40); // the hello: magic and nonce
      expect(ms).toBeLessThan(patient(8000));
    }
    for (const clone of clones) await memory.expectRight(clone);
  });
});

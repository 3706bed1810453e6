// What must hold of the VMs of a lifecycle, whatever it was: asked of the guests, of sfmd, and of the hosts.

import { HostState } from '@snowflock/protocol';
import { listLinks } from '@snowflock/network';
import { expect } from 'vitest';
import type { Lifecycle } from './lifecycle.ts';
import { settled } from './lifecycle.ts';
import { MICRO } from './test-lab.ts';

const MIB = 2 ** 20;
/** sfmd's default: so much of a VM's memory does its host keep free for a ticket of it. */
const FORK_RESERVE_PERCENT = 25;
/** Since each VM is one of its own. */
const DRAWS_MIN = 5;
const WHO_AM_I = [
  'hostname',
  'cat /sys/class/net/eth0/address',
  "ip -o addr show dev eth0 | sed -n 's/.* inet6* \\([^ ]*\\) .*/\\1/p' | sort",
  "sed -n 's/^\\(clusterid\\|vmid\\)=//p' /run/snowflock/identity",
  '/tmp/vmtest call whoami',
].join('; ');

/** Every VM reads what it has written, and those that it was made of; not what others have. */
export async function diskIsRight(lifecycle: Lifecycle): Promise<void> {
  await lifecycle.expectContents('disk');
  await Promise.all(
    lifecycle.vms.map(async (guest) => expect(await guest.diskErrors(), guest.name).toBe('')),
  );
}

/** As docs/identity.md and docs/network.md have it; and each VM reaches the next one of its cluster. */
export async function identitiesAreRight({ vms, draws }: Lifecycle): Promise<void> {
  await Promise.all(
    vms.map(async (guest, index) => {
      const { clusterid, vmid } = guest;
      const hex = clusterid.toString(16).padStart(6, '0') + vmid.toString(16).padStart(4, '0');
      expect((await guest.sh(WHO_AM_I)).split('\n'), guest.name).toEqual([
        `sf-${clusterid}-${vmid}`,
        `52:${hex.match(/../g)?.join(':') ?? ''}`,
        `10.0.0.${vmid + 1}/16`,
        `fd53:6e6f:7766::${(vmid + 1).toString(16)}/64`,
        ...[String(clusterid), String(vmid)],
        `ok ${clusterid} ${vmid}`,
      ]);
      const next = [...vms.slice(index + 1), ...vms].find((vm) => vm.clusterid === clusterid);
      if (next && next !== guest) await guest.run(['ping', '-c', '1', '-W', '5', next.ip]);
    }),
  );
  await Promise.all(
    vms.map(async (guest) =>
      expect(await draws.addThoseOf(guest), guest.name).toBeGreaterThanOrEqual(DRAWS_MIN),
    ),
  );
}

/** sfmd holds for the VMs what they need, and for tickets, and nothing else; each host has what sfmd says, and not a process more. */
export async function resourcesAreCounted({ lab, vms, tickets, over }: Lifecycle): Promise<void> {
  const sorted = (names: Iterable<string>): string[] => [...names].sort();
  await settled('all resources to be counted', async () => {
    const { hosts, clusters } = await lab.state();
    const running = clusters.flatMap(({ clusterid, vms: all }) =>
      all
        .filter(({ status }) => status === 'running')
        .map(({ vmid, host }) => ({ name: `${clusterid}:${vmid}`, host })),
    );
    expect(sorted(running.map(({ name }) => name))).toEqual(sorted(vms.map(({ name }) => name)));
    const outstanding = clusters.flatMap(({ tickets: all }) => all.map(({ ticket }) => ticket));
    expect(sorted(outstanding)).toEqual(sorted([...tickets].map(({ id }) => id)));
    for (const { k, name, netns } of lab.lab.hosts) {
      const here = sorted(running.filter(({ host }) => host === name).map((vm) => vm.name));
      const frozen = [...tickets].filter(({ host }) => host === name).length;
      const ended = [...tickets].flatMap((ticket) => ticket.ended).filter((host) => host === name);
      const shares = here.length + ended.length;
      const { cpus, cpusFree, ramBytes, ramFreeBytes, vms: held } = hosts[k - 1] ?? { cpus: 0 };
      expect({
        name,
        cpus: cpus - (cpusFree ?? 0),
        held,
        ram: (ramBytes ?? 0) - (ramFreeBytes ?? 0),
      }).toEqual({
        name,
        cpus: shares * MICRO.vcpus,
        held: shares,
        ram: (shares + (frozen * FORK_RESERVE_PERCENT) / 100) * MICRO.memoryMib * MIB,
      });
      const own = await lab.get('/v1/state', HostState, k);
      expect(sorted([...own.masters, ...own.clones])).toEqual(here);
      expect([...own.sources, ...own.groups].filter((ticket) => over.includes(ticket))).toEqual([]);
      const frozenPids = await lab.pids(k, 'sf-frozen');
      const qemus = (await lab.pids(k, 'qemu-system')).filter((pid) => !frozenPids.includes(pid));
      const taps = (await listLinks({ netns })).filter((link) => link.startsWith('sft'));
      expect({ name, frozen: frozenPids.length, qemus: qemus.length, taps: taps.length }).toEqual({
        ...{ name, frozen, qemus: here.length, taps: here.length },
      });
    }
  });
}

// The units of packaging/systemd: as systemd's own checker sees them, and on a machine that systemd runs.

import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { buildImage } from '@snowflock/image';
import { runCommand } from '@snowflock/network';
import { SystemState } from '@snowflock/protocol';
import { requireVm } from './require-vm.ts';
import { eventually } from './support/deadline.ts';
import { CHECKOUT, SystemdMachine } from './support/systemd-machine.ts';

const ROOT = join(import.meta.dirname, '..');
const BIN = join(ROOT, 'bin');
const COMMAND_TIMEOUT_MS = 60_000;
/** In place of a minute. */
const WATCHDOG = '[Service]\nWatchdogSec=3\n';
const SETTLED_MS = 30_000;
const DAEMONS = ['sfmd', 'sfld'] as const;

describe.skipIf(!requireVm(['root', 'systemd']))("systemd's units", () => {
  /** Of 10: sfmd needs its sockets and its files; sfld makes namespaces, mounts, devices and VMs, so that little can be taken from it. */
  const EXPOSURE_MAX = { sfmd: 3, sfld: 9.5 } as const;

  it.each(['sfmd', 'sfld'] as const)('%s is without mistakes, and as confined as it can be', async (name) => {
    const dir = mkdtempSync(join(tmpdir(), 'sf-units-'));
    try {
      // What it starts must be there for the checker: the checkout's own.
      const unit = join(dir, `${name}.service`);
      const text = readFileSync(join(ROOT, `packaging/systemd/${name}.service`), 'utf8');
      writeFileSync(unit, text.replaceAll('/usr/local/bin/', `${BIN}/`));
      const checked = await runCommand(['systemd-analyze', 'verify', unit], {
        timeoutMs: COMMAND_TIMEOUT_MS,
      });
      expect(checked).toEqual({ status: 0, stdout: '', stderr: '' });
      const threshold = `--threshold=${EXPOSURE_MAX[name] * 10}`;
      const argv = ['systemd-analyze', 'security', '--offline=true', threshold, unit];
      const exposed = await runCommand(argv, { timeoutMs: COMMAND_TIMEOUT_MS });
      expect([exposed.status, exposed.stdout]).toEqual([
        0,
        expect.stringContaining('Overall exposure level'),
      ]);
      // And the checker does check.
      writeFileSync(unit, `${text}\n[Service]\nNoSuchSetting=yes\n`);
      const wrong = await runCommand(['systemd-analyze', 'verify', unit], { timeoutMs: COMMAND_TIMEOUT_MS });
      expect(wrong.stderr).toContain('NoSuchSetting');
    } finally {
      rmSync(dir, { recursive: true });
    }
  });
});

describe.skipIf(!requireVm(['root', 'fuse', 'tun', 'qemu', 'ip', 'nft', 'systemd-nspawn']))(
  'a host that systemd runs',
  () => {
    let machine: SystemdMachine;

    const write = (path: string, text: string) =>
      machine.succeed('sh', '-c', 'printf %s "$2" >"$1"', 'sh', path, text);
    const pidOf = (daemon: string) => machine.succeed('systemctl', 'show', '-P', 'MainPID', daemon);
    const state = async () => SystemState.parse(JSON.parse(await machine.succeed('sfstate', '--json')));
    const inVm = async (vm: string, command: string) =>
      (await machine.succeed('snowflock', 'exec', vm, '--', 'sh', '-c', command)).trim();

    /** Both run, know each other, and are other processes than before. */
    async function started(before: readonly string[] = []): Promise<void> {
      await eventually(SETTLED_MS, 'both daemons to have started', async () => {
        for (const daemon of DAEMONS) {
          await machine.succeed('systemctl', 'is-active', daemon);
          const pid = await pidOf(daemon);
          if (before.includes(pid)) throw new Error(`${daemon} is still process ${pid}`);
        }
        expect((await state()).hosts).toMatchObject([{ host: 'host1', up: true }]);
      });
    }

    // As docs/configuration.md and the README tell it.
    beforeAll(async () => {
      await buildImage('micro');
      machine = await SystemdMachine.boot('host1');
      await machine.succeed('sh', '-c', `ln -s ${CHECKOUT}/bin/* /usr/local/bin/`);
      await machine.succeed('sh', '-c', `cp ${CHECKOUT}/packaging/systemd/*.service /etc/systemd/system/`);
      await machine.succeed('mkdir', '/etc/snowflock');
      await write('/etc/snowflock/sfld.cfg', "hostname = 'host1'\nmaster_host = 'host1'\n");
      const cpusAndRam = "'cpus': 8, 'RAM': 2 * (1 << 30)";
      await write('/etc/snowflock/sfmd.cfg', `cluster_hosts = [{'host': 'host1', ${cpusAndRam}}]\n`);
      await write('/root/micro.cfg', 'disk_image = "micro"\nvcpus = 1\nmemory = 96\n');
      await machine.succeed('snowflock', 'init');
      await machine.succeed('systemctl', 'enable', '--now', ...DAEMONS);
    });
    afterAll(async () => machine[Symbol.asyncDispose]());

    it('has daemons that are started when they listen', async () => {
      for (const daemon of DAEMONS) {
        expect(await machine.succeed('systemctl', 'show', '-P', 'StatusText', daemon)).toMatch(
          /^listening on port \d+/,
        );
        expect(await machine.succeed(daemon, 'status')).toMatch(/ is running /);
      }
      await started();
    });

    it('keeps its VMs when daemons are killed, hang, are restarted or stopped', async () => {
      expect(await machine.succeed('sfseed', '/root/micro.cfg')).toContain("(0, '10.0.0.1')");
      await inVm('0:0', 'echo warm >/run/mark');
      await machine.succeed('snowflock', 'fork', '0:0', '2');
      for (const daemon of DAEMONS) {
        await machine.succeed('mkdir', '-p', `/etc/systemd/system/${daemon}.service.d`);
        await write(`/etc/systemd/system/${daemon}.service.d/watchdog.conf`, WATCHDOG);
      }
      await machine.succeed('systemctl', 'daemon-reload');
      const ways = [
        (pids: string[]) => machine.succeed('kill', '-KILL', ...pids),
        () => machine.succeed('systemctl', 'restart', ...DAEMONS),
        (pids: string[]) => machine.succeed('kill', '-STOP', ...pids), // the watchdog finds them
        async () => {
          await machine.succeed('systemctl', 'stop', ...DAEMONS);
          await machine.succeed('systemctl', 'start', ...DAEMONS);
        },
      ];
      for (const way of ways) {
        const pids = (await Promise.all(DAEMONS.map(pidOf))).map((pid) => pid.trim());
        await way(pids);
        await started(pids);
        for (const vm of ['0:0', '0:1', '0:2']) expect(await inVm(vm, 'cat /run/mark')).toBe('warm');
      }
      // and all that a cluster can do it still can
      await machine.succeed('snowflock', 'exec', '0:0', '--', 'sfmerge', '');
      expect((await state()).clusters).toMatchObject([{ vms: [{ vmid: 0 }] }]);
    });

    it('has its daemons again after a reboot, knows that the VMs are gone, and has room for new ones', async () => {
      await machine.reboot();
      await started();
      await eventually(SETTLED_MS, 'the old cluster to be gone', async () => {
        expect(await state()).toMatchObject({ clusters: [], hosts: [{ up: true }] });
      });
      expect(await machine.succeed('find', '/var/lib/snowflock/vms', '-type', 'f')).toBe('');
      expect(await machine.succeed('sfseed', '/root/micro.cfg')).toContain("'10.0.0.1')");
      const [cluster] = (await state()).clusters;
      expect(await inVm(`${cluster?.clusterid}:0`, 'ls /run/mark; echo runs')).toMatch(/runs$/);
    });

    it('ends its VMs with the daemon when it is told so', async () => {
      await machine.succeed('sfld', 'stop', '--vms');
      await eventually(SETTLED_MS, 'sfld to have stopped', async () => {
        expect((await machine.run(['systemctl', 'is-active', 'sfld'])).stdout.trim()).toBe('inactive');
      });
      expect((await machine.run(['pgrep', '-a', 'qemu|node.*(memtap|memserver|router)'])).stdout).toBe('');
    });
  },
);

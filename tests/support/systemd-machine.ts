// A machine of its own whose first process is systemd: a container over this machine's own Debian. What it writes is kept in
// memory and goes with it; so do its mounts, which no other process sees.

import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, readFileSync, readdirSync, rmdirSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { storeDirectory } from '@snowflock/image';
import { runCommand, type CommandResult } from '@snowflock/network';
import { eventually, within } from './deadline.ts';

const ROOT = join(import.meta.dirname, '../..');
/** Where SnowFlock is on it. */
export const CHECKOUT = '/opt/snowflock';
const BOOT_MS = 30_000;
const POWEROFF_MS = 30_000;
const LOG_MAX_CHARACTERS = 100_000;

/** The network: one address, there before a daemon wants it. */
const ADDRESS = '10.9.0.1';
const NETWORK_UNIT = `[Unit]
DefaultDependencies=no
Before=network-pre.target
Wants=network-pre.target
[Service]
Type=oneshot
ExecStart=ip link add eth0 type veth peer name far0
ExecStart=ip addr add ${ADDRESS}/24 dev eth0
ExecStart=ip link set far0 up
ExecStart=ip link set eth0 up
[Install]
WantedBy=multi-user.target
`;

/**
 * $1: an empty directory; $2: the host name; $3...: what systemd-nspawn is told besides. Of what this machine starts at boot, and of a SnowFlock
 * that is installed here, the new one has nothing. Ends with whoever started it.
 */
const BOOT_SCRIPT = `set -e
dir=$1 name=$2; shift 2
mount -t tmpfs -o mode=755 snowflock-test "$dir"
mkdir "$dir/changes" "$dir/work" "$dir/root"
mount -t overlay -o "lowerdir=/,upperdir=$dir/changes,workdir=$dir/work" snowflock-test "$dir/root"
etc=$dir/root/etc
rm -rf "$dir/root/var/lib/snowflock" "$etc/snowflock" "$etc/systemd/system"/*.wants
mkdir -p "$etc/systemd/system/multi-user.target.wants"
tr -d - </proc/sys/kernel/random/uuid >"$etc/machine-id" # without one systemd would enable whatever is installed
echo "$name" >"$etc/hostname"
echo '127.0.0.1 localhost' >"$etc/hosts"
echo '${ADDRESS} '"$name" >>"$etc/hosts"
cat >"$etc/systemd/system/test-network.service"
ln -s ../test-network.service "$etc/systemd/system/multi-user.target.wants"
mount -t tmpfs snowflock-test /run # systemd-nspawn leaves files there
status=133
while [ $status -eq 133 ]; do # it says so when the machine reboots
  status=0
  systemd-nspawn --quiet --keep-unit --register=no --boot --directory="$dir/root" --machine="$name" \\
    --private-network --capability=all --bind=/dev/fuse --bind=/dev/net/tun "$@" || status=$?
done
exit $status
`;

export class SystemdMachine implements AsyncDisposable {
  readonly #container: ChildProcess;
  readonly #directory: string;
  #said = '';

  private constructor(name: string) {
    this.#directory = mkdtempSync(join(tmpdir(), 'sf-systemd-'));
    const binds = [`--bind-ro=${ROOT}:${CHECKOUT}`, `--bind=${storeDirectory()}:/var/cache/snowflock/images`];
    // it has process ids of its own as well: so all of them end with the first
    const unshare = ['unshare', '--mount', '--propagation', 'private', '--pid', '--fork', '--kill-child'];
    const shell = ['sh', '-c', BOOT_SCRIPT, 'sh', this.#directory, name, ...binds];
    this.#container = spawn('setpriv', ['--pdeathsig', 'KILL', ...unshare, '--mount-proc', ...shell]);
    for (const stream of [this.#container.stdout, this.#container.stderr])
      stream?.setEncoding('utf8').on('data', (text: string) => {
        this.#said = (this.#said + text).slice(-LOG_MAX_CHARACTERS);
      });
    this.#container.stdin?.end(NETWORK_UNIT);
  }

  /** Resolves when it has started what it starts. */
  static async boot(name: string): Promise<SystemdMachine> {
    const machine = new SystemdMachine(name);
    try {
      await machine.#booted();
    } catch (error) {
      machine.#container.kill('SIGKILL');
      throw new Error(`systemd did not start; its console says: ${machine.#said.slice(-2000)}`, {
        cause: error,
      });
    }
    return machine;
  }

  run(argv: readonly string[]): Promise<CommandResult> {
    const leader = this.#leader();
    if (leader === undefined) throw new Error(`the machine is not up; its console says: ${this.#said}`);
    return runCommand(['nsenter', '-t', leader, '-m', '-u', '-i', '-n', '-p', '--', ...argv]);
  }

  /** For commands that are expected to succeed; gives standard output. */
  async succeed(...argv: string[]): Promise<string> {
    const { status, stdout, stderr } = await this.run(argv);
    if (status !== 0) throw new Error(`${argv.join(' ')}: exit status ${status}: ${stderr || stdout}`);
    return stdout;
  }

  /** Its processes are ended as systemd ends them at a reboot. */
  async reboot(): Promise<void> {
    const before = this.#leader();
    await this.succeed('systemctl', 'reboot');
    await eventually(POWEROFF_MS, 'the machine to go down', () => {
      if (this.#leader() === before) throw new Error('it runs');
    });
    await this.#booted();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const ended = once(this.#container, 'exit');
    if (this.#container.exitCode === null && this.#container.signalCode === null) {
      await this.run(['systemctl', 'poweroff']).catch(() => undefined); // it may be down already
      await within(POWEROFF_MS, 'the machine to power off', ended).catch((error: unknown) => {
        this.#container.kill('SIGKILL');
        throw error;
      });
    }
    for (const group of ownControlGroups()) removeControlGroups(group);
    rmdirSync(this.#directory);
  }

  async #booted(): Promise<void> {
    await eventually(BOOT_MS, 'systemd to reach multi-user.target', async () => {
      await this.succeed('systemctl', 'is-active', 'multi-user.target');
    });
  }

  /** Process id of its systemd, as seen from here: below unshare, the shell and systemd-nspawn. */
  #leader(): string | undefined {
    const shells = childrenOf(this.#container.pid);
    return shells.flatMap(childrenOf).flatMap(childrenOf)[0];
  }
}

function childrenOf(pid: number | string | undefined): string[] {
  try {
    return readFileSync(`/proc/${pid}/task/${pid}/children`, 'utf8').split(' ').filter(Boolean);
  } catch {
    return []; // it has ended
  }
}

/** systemd-nspawn makes these for a container, and leaves them. */
function ownControlGroups(): string[] {
  const mounts = readFileSync('/proc/self/mounts', 'utf8')
    .split('\n')
    .map((line) => line.split(' '));
  const own = readFileSync('/proc/self/cgroup', 'utf8')
    .split('\n')
    .map((line) => line.split(':'));
  return mounts
    .filter(([, , type]) => type === 'cgroup' || type === 'cgroup2')
    .flatMap(([, point = '']) => own.map(([, , path = '']) => join(point, path)))
    .flatMap((group) => [join(group, 'payload'), join(group, 'supervisor')]);
}

function removeControlGroups(group: string): void {
  try {
    for (const entry of readdirSync(group, { withFileTypes: true }))
      if (entry.isDirectory()) removeControlGroups(join(group, entry.name));
    rmdirSync(group);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error;
  }
}

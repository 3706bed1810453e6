// A lab for whole-system tests: real daemons, real guests, and a look at what is left behind by each test and in the end.

import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { afterAll, afterEach, beforeAll, expect } from 'vitest';
import { findLeftovers, Lab, type DaemonName, type LabUpOptions } from '@snowflock/lab';
import {
  CheckpointInfo,
  CloneRecord,
  NoReply,
  SeedReply,
  SystemState,
  type VmShape,
  type VmState,
} from '@snowflock/protocol';
import { z } from 'zod';
import { eventually, patient, within } from './deadline.ts';
import { Guest } from './guest.ts';
import { hostCommand, type CommandOutcome } from './host-command.ts';
import { processesOf, vmLeftovers } from './leftovers.ts';

/** Of calls to daemons that answer at once. */
const CALL_MS = 15_000;
/** Seeding a VM and its boot, under emulation on a busy machine. */
const BOOT_MS = 90_000;
/** A cluster with all its VMs on all hosts. */
const SHUTDOWN_MS = 40_000;
/** Nothing is left at once; only the kernel takes its time with the memory of a process that was killed. */
const CLEAN_MS = 10_000;
/** Processes that start on all hosts. */
const PREPARE_MS = 30_000;
/** No test waits for it; those of hosts that stop answering say how long. */
const PATIENT_SECONDS = 30;
/** sfmd learns of a host's return within 3 s. */
const HOSTS_UP_MS = 30_000;
const LOG_TAIL_CHARACTERS = 4000;

/** Its programs have 28 MiB: the rest is the kernel's and the root file system's. */
export const MICRO: VmShape = { diskImage: 'micro', vcpus: 1, memoryMib: 96 };

export interface TestLabOptions {
  readonly hosts: number;
  /** Of each host. */
  readonly cpus: number;
  readonly ramMib: number;
  readonly networkMode?: LabUpOptions['networkMode'];
  /** How long a host may be silent; sfmd's default is less than what daemons that start on a busy machine may take. */
  readonly hostTimeoutSeconds?: number;
  /** Lines of sfmd's configuration. */
  readonly sfmdOptions?: readonly string[];
}

export class TestLab {
  readonly lab: Lab;
  readonly #parent: string;

  private constructor(lab: Lab, parent: string) {
    this.lab = lab;
    this.#parent = parent;
  }

  static async up(options: TestLabOptions): Promise<TestLab> {
    const { hosts, cpus, ramMib, networkMode, hostTimeoutSeconds = PATIENT_SECONDS } = options;
    const sfmdOptions = [`host_timeout = ${hostTimeoutSeconds}`, ...(options.sfmdOptions ?? [])];
    const parent = mkdtempSync('/tmp/sft-');
    process.env.SNOWFLOCK_LAB_DIR = parent;
    try {
      const ramBytes = ramMib * 2 ** 20;
      const lab = await Lab.up({ name: `t${process.pid}`, hosts, cpus, ramBytes, networkMode, sfmdOptions });
      return new TestLab(lab, parent);
    } catch (error) {
      rmSync(parent, { recursive: true, force: true });
      throw error;
    }
  }

  // ---- asking -----------------------------------------------------------------------------------------------------

  state(): Promise<SystemState> {
    return this.get('/v1/master/state', SystemState);
  }

  get<T>(path: string, reply: z.ZodType<T>, k = 1): Promise<T> {
    return this.lab.client(k).request({ method: 'GET', path, reply, timeoutMs: patient(CALL_MS) });
  }

  async vm(guest: Guest): Promise<VmState | undefined> {
    const cluster = (await this.state()).clusters.find((each) => each.clusterid === guest.clusterid);
    return cluster?.vms.find((each) => each.vmid === guest.vmid);
  }

  /** Until sfmd says that the VM has ended so; answers the reason that it gives. */
  async endOf(guest: Guest, status: 'lost' | 'exited', deadlineMs: number): Promise<string> {
    return eventually(deadlineMs, `VM ${guest.name} to be ${status}`, async () => {
      const vm = await this.vm(guest);
      expect(vm).toMatchObject({ status });
      return vm?.reason ?? '';
    });
  }

  /** Number of the host that a VM runs on. */
  async hostOf(guest: Guest): Promise<number> {
    const vm = await this.vm(guest);
    const host = this.lab.hosts.find((each) => each.name === vm?.host);
    if (!host) throw new Error(`VM ${guest.name} is on no host`);
    return host.k;
  }

  /** Clones of a cluster that run on host `k`, with their pids. */
  async clonesOn(k: number, clusterid: number): Promise<CloneRecord[]> {
    const records = await this.get('/v1/clones', z.array(CloneRecord), k);
    return records.filter((each) => each.clusterid === clusterid && each.status === 'running');
  }

  /** Processes on host `k` whose name or command line holds all these words. */
  async pids(k: number, ...words: string[]): Promise<number[]> {
    const { stdout } = await this.lab.exec(k, ['ps', '-ww', '-eo', 'pid,netns,comm,args']);
    const { stdout: inode } = await this.lab.exec(k, ['readlink', '/proc/self/ns/net']);
    const netns = /\d+/.exec(inode)?.[0] ?? '-';
    return stdout
      .split('\n')
      .map((line) => line.trim().split(/\s+/))
      .filter(
        (fields) => fields[1] === netns && words.every((word) => fields.slice(2).join(' ').includes(word)),
      )
      .map((fields) => Number(fields[0]));
  }

  /** SIGKILL for the one process on host `k` whose command line holds all these words; answers its pid. */
  async killOne(k: number, ...words: string[]): Promise<number> {
    const pids = await this.pids(k, ...words);
    if (pids.length !== 1)
      throw new Error(`processes on host ${k} with '${words.join(' ')}': ${pids.join(', ')}`);
    const [pid = Number.NaN] = pids;
    process.kill(pid, 'SIGKILL');
    return pid;
  }

  // ---- doing ------------------------------------------------------------------------------------------------------

  /** A booted master VM of a new cluster; on host `on`, if given. */
  async seed(shape: VmShape = MICRO, { on }: { readonly on?: number } = {}): Promise<Guest> {
    for (;;) {
      const reply = await this.lab.client(1).request({
        method: 'POST',
        path: '/v1/master/clusters',
        body: shape,
        reply: SeedReply,
        timeoutMs: patient(BOOT_MS),
      });
      if (on !== undefined && reply.host !== this.lab.hosts[on - 1]?.name) {
        await this.shutdown(reply.clusterid); // sfmd chooses at random
        continue;
      }
      const guest = new Guest(() => this.lab.client(1), reply);
      await guest.run(['true'], { deadlineMs: BOOT_MS });
      return guest;
    }
  }

  /** The master VM of a cluster that something else has seeded. */
  guest(clusterid: number): Guest {
    return new Guest(() => this.lab.client(1), { clusterid, vmid: 0 });
  }

  /** The master VM of a new cluster that goes on from a checkpoint; on host `on`, if given. */
  async seedFrom(checkpoint: string, { on }: { readonly on?: number } = {}): Promise<Guest> {
    for (;;) {
      const { status, out, err } = await this.command('snowflock', ['checkpoint', 'clone', checkpoint]);
      expect({ status, err }).toEqual({ status: 0, err: '' });
      const guest = this.guest(Number(/^\((\d+), '10\.0\.0\.1'\)\n$/.exec(out)?.[1]));
      if (on === undefined || (await this.hostOf(guest)) === on) return guest;
      await this.shutdown(guest.clusterid); // sfmd chooses at random
    }
  }

  /** `sfclone COUNT` in the master VM; answers when all that were granted run and have said so. */
  async fork(master: Guest, count: number): Promise<{ ticket: string; clones: Guest[]; printed: string }> {
    const script =
      'rm -f /run/sfclone.*; sfclone $1 >/run/sfclone.out 2>&1; echo $? >/run/sfclone.status; cat /run/sfclone.out';
    const printed = await master.run(['sh', '-c', script, 'sh', String(count)], { deadlineMs: 60_000 });
    const ticket = /^Ticket is (\S+)$/m.exec(printed)?.[1];
    if (ticket === undefined) throw new Error(`sfclone ${count} printed: ${printed}`);
    const clones = (await this.clonesOf(master, ticket)).map(({ vmid }) => master.sibling(vmid));
    for (const clone of clones) await clone.file('/run/sfclone.status');
    return { ticket, clones, printed };
  }

  /** Until the clones of an unused ticket wait for their fork. */
  async prepared(master: Guest, ticket: string): Promise<void> {
    await eventually(PREPARE_MS, `the clones of ticket ${ticket} to wait`, async () => {
      const all = await Promise.all(
        this.lab.hosts.map(({ k }) => this.get('/v1/clones', z.array(CloneRecord), k)),
      );
      const waiting = all.flat().filter((each) => each.ticket === ticket);
      expect(waiting.length).toBe((await this.clonesOf(master, ticket)).length);
    });
  }

  async clonesOf(
    master: Guest,
    ticket: string,
  ): Promise<{ vmid: number; host: string; processors: number }[]> {
    const cluster = (await this.state()).clusters.find((each) => each.clusterid === master.clusterid);
    return cluster?.tickets.find((each) => each.ticket === ticket)?.clones ?? [];
  }

  /** A command of the host, asking host 1's sfld. */
  command(
    name: 'snowflock' | 'sfseed' | 'sfstate',
    args: readonly string[],
    options: { readonly input?: string | Buffer; readonly deadlineMs?: number } = {},
  ): Promise<CommandOutcome> {
    return hostCommand(name, args, { ...options, env: { SNOWFLOCK_SOCKET: this.lab.hosts[0]?.socketPath } });
  }

  async shutdown(clusterid: number, force = true): Promise<void> {
    const path = `/v1/master/clusters/${clusterid}${force ? '?force=1' : ''}`;
    await this.lab
      .client(1)
      .request({ method: 'DELETE', path, reply: NoReply, timeoutMs: patient(SHUTDOWN_MS) });
  }

  // ---- cleaning up ------------------------------------------------------------------------------------------------

  /** All clusters go; then nothing of any VM is on any host, and all is free again. */
  async reset(): Promise<void> {
    this.expectDaemons();
    await this.hostsUp();
    await within(SHUTDOWN_MS, 'the shutdown of all clusters', this.#shutdownAll());
    await this.#deleteCheckpoints();
    await this.expectIdle();
  }

  /** Nothing of any VM is on any host, and all is free. */
  async expectIdle(): Promise<void> {
    await eventually(CLEAN_MS, 'nothing of a VM to be left', async () => {
      const left = await vmLeftovers(this.lab);
      if (left.length > 0) throw new Error(left.join('\n'));
      const state = await this.state();
      expect(state.clusters).toEqual([]);
      for (const host of state.hosts)
        expect(host).toMatchObject({ cpusFree: host.cpus, ramFreeBytes: host.ramBytes, vms: 0 });
    });
  }

  /** SIGKILL for a daemon; returns when it is dead. */
  async killDaemon(k: number, daemon: DaemonName): Promise<void> {
    this.lab.signalDaemon(k, daemon, 'SIGKILL');
    await eventually(CALL_MS, `the end of ${daemon} on host ${k}`, () => {
      expect(this.lab.daemonPid(k, daemon)).toBeUndefined();
    });
  }

  async hostsUp(): Promise<void> {
    for (const { k } of this.lab.hosts) await this.lab.healHost(k);
    await eventually(HOSTS_UP_MS, 'all hosts to be up', async () => {
      expect((await this.state()).hosts.map(({ up }) => up)).toEqual(this.lab.hosts.map(() => true));
    });
  }

  /** Throws with the end of its log if a daemon is dead; those that a test kills it starts again. */
  expectDaemons(): void {
    for (const { k } of this.lab.hosts)
      for (const daemon of k === 1 ? (['sfmd', 'sfld'] as const) : (['sfld'] as const)) {
        if (this.lab.daemonPid(k, daemon) !== undefined) continue;
        const log = readFileSync(this.lab.logPath(k, daemon), 'utf8').slice(-LOG_TAIL_CHARACTERS);
        throw new Error(`${daemon} of host ${k} is dead; the end of its log:\n${log}`);
      }
  }

  async down(): Promise<void> {
    const { dir, name } = this.lab;
    const { notes } = await this.lab.down();
    expect(await this.lab.leftovers()).toEqual([]);
    expect(await findLeftovers(name)).toEqual([]);
    expect(processesOf(dir)).toEqual([]);
    expect(existsSync(dir)).toBe(false);
    expect(readdirSync(this.#parent)).toEqual([]);
    delete process.env.SNOWFLOCK_LAB_DIR;
    rmSync(this.#parent, { recursive: true });
    expect(notes).toEqual([]);
  }

  async #deleteCheckpoints(): Promise<void> {
    const all = await this.get('/v1/master/checkpoints', z.array(CheckpointInfo));
    for (const { name } of all) {
      const path = `/v1/master/checkpoints/${name}`;
      await this.lab
        .client(1)
        .request({ method: 'DELETE', path, reply: NoReply, timeoutMs: patient(CALL_MS) });
    }
  }

  async #shutdownAll(): Promise<void> {
    const { clusters } = await this.state();
    await Promise.all(clusters.map(({ clusterid }) => this.shutdown(clusterid).catch(ignoreGone)));
  }
}

function ignoreGone(error: unknown): void {
  if (!String(error).includes('there is no cluster')) throw error;
}

/**
 * One lab for the tests of a `describe`, made before the first and taken down after the last. After each test no VM is left,
 * nor anything of one; with `keepsVms` the tests see to that themselves.
 */
export function sharedLab(
  options: TestLabOptions,
  { keepsVms = false }: { readonly keepsVms?: boolean } = {},
): () => TestLab {
  let lab: TestLab | undefined;
  const current = (): TestLab => {
    if (!lab) throw new Error('the lab is not up');
    return lab;
  };
  beforeAll(async () => {
    lab = await TestLab.up(options);
  });
  if (!keepsVms) afterEach(() => current().reset());
  afterAll(() => lab?.down());
  return current;
}

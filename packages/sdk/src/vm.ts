// One VM: commands in it, files into it and out of it.

import {
  ForkVmReply,
  formatVmRef,
  MigrateReply,
  NoReply,
  PortExposed,
  SnowflockError,
  SystemState,
  type VmRef,
  type VmState,
} from '@snowflock/protocol';
import { copyFromVm, copyToVm } from './copy.ts';
import { execInVm, type ExecResult } from './exec-captured.ts';
import { connectExec, type ExecHandle, type ExecOptions, startExec } from './exec.ts';
import type { Reach } from './reach.ts';
import type { CallOptions } from './call-options.ts';

const STATE_TIMEOUT_MS = 10_000;
/** Some tens of ms; where it cannot be done in place, a QEMU ends and another one starts, on a loaded host. */
const RESET_TIMEOUT_MS = 60_000;
/** More than sfmd takes to say what became of it, whatever happens to hosts meanwhile. */
const MIGRATE_TIMEOUT_MS = 400_000;
/** Somewhat more than sfld takes for all of it. */
const FORK_TIMEOUT_MS = 150_000;
/** Somewhat more than sfld takes for it. */
const EXPOSE_TIMEOUT_MS = 60_000;
/** Clones are destroyed on all hosts. */
const MERGE_TIMEOUT_MS = 90_000;

export interface WaitOptions extends CallOptions {
  /** How long to wait for a VM that boots; by default three minutes. */
  readonly waitMs?: number | undefined;
}

export interface ForkOptions extends CallOptions {
  /** So many clones will do; by default all of them. */
  readonly min?: number | undefined;
  /** Clones stay off the network: the only way to fork a guest without an agent. */
  readonly isolated?: boolean | undefined;
}

export class Vm {
  readonly clusterid: number;
  readonly vmid: number;
  protected readonly reach: Reach;

  constructor(reach: Reach, { clusterid, vmid }: VmRef) {
    this.reach = reach;
    this.clusterid = clusterid;
    this.vmid = vmid;
  }

  /** `clusterid:vmid`, as commands take it. */
  get name(): string {
    return formatVmRef(this);
  }

  /** Runs a command as root, without a shell, and gives what it printed (up to 64 MiB). Any exit status is an answer. */
  async exec(
    argv: readonly string[],
    options: WaitOptions & { readonly input?: string | Buffer | undefined } = {},
  ): Promise<ExecResult> {
    return execInVm(await this.reach.clientOf(this), this.name, argv, options);
  }

  /** Starts a command on streams. Aborting the signal detaches from it; the command gets SIGHUP. */
  async start({ waitMs, ...exec }: ExecOptions & WaitOptions): Promise<ExecHandle> {
    const { signal } = exec;
    const client = await this.reach.clientOf(this);
    return startExec(await connectExec(client, this.name, { waitMs, signal }), exec);
  }

  /** A file or folder of this machine into the VM; into a folder that is there it keeps its name. */
  async copyIn(from: string, to: string, { signal }: CallOptions = {}): Promise<void> {
    await copyToVm(await this.reach.clientOf(this), { from, vm: this.name, to, signal });
  }

  /** A file or folder of the VM to this machine. Set-id bits and device nodes do not come along. */
  async copyOut(from: string, to: string, { signal }: CallOptions = {}): Promise<void> {
    await copyFromVm(await this.reach.clientOf(this), { vm: this.name, from, to, signal });
  }

  /**
   * Forks it from outside, as if a program in it had asked for `count` clones: programs in it and in the clones go on where they were.
   * Resolves when each clone runs or has failed, which its entry then says. Rejects when none was to be had (`no-resources`).
   */
  async fork(count: number, { min, isolated = false, signal }: ForkOptions = {}): Promise<ForkVmReply> {
    const client = await this.reach.clientOf(this);
    return client.request({
      method: 'POST',
      path: `/v1/vms/${this.name}/fork`,
      body: { nclones: count, isolated, ...(min === undefined ? {} : { min }) },
      reply: ForkVmReply,
      timeoutMs: FORK_TIMEOUT_MS,
      ...(signal && { signal }),
    });
  }

  /** Destroys the clones of one of its tickets, or all it has, and theirs; without a ticket its unused tickets are disposed of, too. */
  async mergeClones(ticket?: string, { signal }: CallOptions = {}): Promise<void> {
    const client = await this.reach.clientOf(this);
    await client.request({
      method: 'POST',
      path: `/v1/vms/${this.name}/merge`,
      body: { ticket },
      reply: NoReply,
      timeoutMs: MERGE_TIMEOUT_MS,
      ...(signal && { signal }),
    });
  }

  /**
   * Leads a TCP port of the host of the cluster's master VM to a port of this VM, until the VM ends; answers where. The same port again
   * gives the same answer. Rejects with `busy` when the port of the host that is asked for is in use.
   */
  async expose(
    port: number,
    { hostPort, signal }: CallOptions & { readonly hostPort?: number | undefined } = {},
  ): Promise<PortExposed> {
    const client = await this.reach.clientOf(this);
    return client.request({
      method: 'PUT',
      path: `/v1/vms/${this.name}/ports/${port}`,
      body: hostPort === undefined ? {} : { hostPort },
      reply: PortExposed,
      timeoutMs: EXPOSE_TIMEOUT_MS,
      ...(signal && { signal }),
    });
  }

  /** Ends what `expose` began; no error when there is nothing to end. */
  async hide(port: number, { signal }: CallOptions = {}): Promise<void> {
    const client = await this.reach.clientOf(this);
    await client.request({
      method: 'DELETE',
      path: `/v1/vms/${this.name}/ports/${port}`,
      reply: NoReply,
      timeoutMs: EXPOSE_TIMEOUT_MS,
      ...(signal && { signal }),
    });
  }

  /** Puts a clone back to where it was when clone_master returned in it. Refused for a master VM, and for one with tickets of its own. */
  async reset({ signal }: CallOptions = {}): Promise<void> {
    await this.reach.ask({
      method: 'POST',
      path: `/clusters/${this.clusterid}/vms/${this.vmid}/reset`,
      reply: NoReply,
      timeoutMs: RESET_TIMEOUT_MS,
      ...(signal && { signal }),
    });
  }

  /**
   * Takes it to another host, where it goes on as who it is: connections inside its cluster, tickets and clones stay its own. Resolves when it
   * runs there; rejects when it goes on where it was.
   */
  async migrate({ host }: { readonly host: string }, { signal }: CallOptions = {}): Promise<MigrateReply> {
    return this.reach.ask({
      method: 'POST',
      path: `/clusters/${this.clusterid}/vms/${this.vmid}/migrate`,
      body: { host },
      reply: MigrateReply,
      timeoutMs: MIGRATE_TIMEOUT_MS,
      ...(signal && { signal }),
    });
  }

  /** What sfmd knows of it; `no-such-vm` when it is gone altogether. */
  async state({ signal }: CallOptions = {}): Promise<VmState> {
    const { clusters } = await this.reach.ask({
      method: 'GET',
      path: '/state',
      reply: SystemState,
      timeoutMs: STATE_TIMEOUT_MS,
      ...(signal && { signal }),
    });
    const cluster = clusters.find((each) => each.clusterid === this.clusterid);
    const vm = cluster?.vms.find((each) => each.vmid === this.vmid);
    if (!vm) throw new SnowflockError('no-such-vm', `there is no VM ${this.name}; sfstate lists them`);
    return vm;
  }
}

// VMs that leave this host for another one, and VMs that have come from one: what both sides do about it once sfmd has had them prepare.
//
//   leaving   sendVm ──▶ move-vm.ts ──moved──▶ it ends here; what its clones are read from stays
//   arriving  launch ──▶ clone-group.ts ──▶ runs ──local-copies.ts──▶ the host that it came from is let go of

import {
  SnowflockError,
  toSnowflockError,
  type SendVm,
  type SendVmReply,
  type VmRef,
} from '@snowflock/protocol';
import { logAbout } from '../log.ts';
import type { CloneGroup } from './clone-group.ts';
import type { CloneVm } from './clone-vm.ts';
import { vmDirectories, type HostContext } from './context.ts';
import type { ForkSource } from './fork-source.ts';
import type { LocalCopies } from './local-copies.ts';
import type { MasterVm } from './master-vm.ts';
import { lostOnTheWay, moveVm, settleMove } from './move-vm.ts';

/** What became of the last ones, for an sfmd that has not heard it. */
const REPLIES_MAX = 64;

export interface MigrationPorts {
  readonly vm: (ref: VmRef) => MasterVm | CloneVm | undefined;
  readonly source: (ticket: string) => ForkSource | undefined;
  readonly isIsolated: (ref: VmRef) => boolean;
  /** Ends it here; others are not told. */
  readonly letGo: (vm: MasterVm | CloneVm) => Promise<void>;
  /** Ends it here, because nobody knows whether it runs elsewhere. */
  readonly lose: (vm: MasterVm | CloneVm, reason: string) => Promise<void>;
  readonly feedFromCopy: LocalCopies['feedFromCopy'];
}

export class Migrations {
  readonly #context: HostContext;
  readonly #ports: MigrationPorts;
  /** Under way, and the last that are over, by ticket. */
  readonly #leaving = new Map<string, Promise<SendVmReply>>();

  constructor(context: HostContext, ports: MigrationPorts) {
    this.#context = context;
    this.#ports = ports;
  }

  /** Answers what became of it, also when asked again. */
  send(ref: VmRef, { ticket, to }: SendVm): Promise<SendVmReply> {
    const known = this.#leaving.get(ticket);
    if (known) return known;
    const vm = this.#ports.vm(ref);
    if (!vm) return Promise.resolve({ state: 'gone' });
    return this.#remember(ticket, this.#send(vm, { ticket, to }));
  }

  #remember(ticket: string, reply: Promise<SendVmReply>): Promise<SendVmReply> {
    this.#leaving.set(ticket, reply);
    const [oldest] = this.#leaving.keys();
    if (this.#leaving.size > REPLIES_MAX && oldest !== undefined) this.#leaving.delete(oldest);
    return reply;
  }

  async #send(vm: MasterVm | CloneVm, { ticket, to }: SendVm): Promise<SendVmReply> {
    const log = logAbout(this.#context.log, { ...vm.ref, ticket });
    try {
      const source = this.#ports.source(ticket);
      if (!source)
        throw new SnowflockError(
          'unavailable',
          `host ${this.#context.host} has not prepared to send it; try again`,
        );
      const isolated = this.#ports.isIsolated(vm.ref);
      const { outcome, pausedMs, reason } = await moveVm(this.#context, { vm, source, to, isolated });
      if (outcome === 'stayed') {
        log.warn({ host: to.host, reason }, 'VM not migrated; it goes on');
        return { state: 'stayed', code: 'vm-failed', reason };
      }
      if (outcome === 'unknown') {
        await this.#ports.lose(vm, lostOnTheWay(vm.ref, to));
        return { state: 'gone' };
      }
      log.info({ host: to.host, pausedMs }, 'VM migrated');
      await this.#ports.letGo(vm);
      return { state: 'moved', pausedMs };
    } catch (thrown) {
      const { code, message: reason } = toSnowflockError(thrown);
      log.warn({ host: to.host, reason }, 'VM not migrated');
      return { state: 'stayed', code, reason };
    }
  }

  /** A VM that the last sfld was sending: it is paused until the other host has said whether it runs there. */
  resume(vm: MasterVm | CloneVm): void {
    const { ticket, to } = vm.moving ?? {};
    if (!ticket || !to) return;
    const settled = settleMove(this.#context, { ...vm.ref, ticket, to });
    vm.forks.resumeMove(settled);
    const reply = settled.then(async (outcome): Promise<SendVmReply> => {
      if (outcome === 'moved') await this.#ports.letGo(vm);
      if (outcome === 'unknown') await this.#ports.lose(vm, lostOnTheWay(vm.ref, to));
      if (outcome !== 'stayed') return { state: 'gone' };
      const reason = `sfld of host ${this.#context.host} was restarted meanwhile`;
      return { state: 'stayed', code: 'interrupted', reason };
    });
    reply.catch((error: unknown) => this.#context.log.error({ err: error }, 'a VM could not be cleaned up'));
    void this.#remember(ticket, reply);
  }

  /** Copies all pages of a VM that has come to this host, and then feeds it from the copy. */
  settleIn(group: CloneGroup, ref: VmRef): void {
    if (group.fetched) return this.#tellFetched(group);
    const directory = vmDirectories(this.#context, ref).state;
    const isHere = (): boolean => group.clones.has(ref.vmid);
    void this.#ports
      .feedFromCopy(group, { owner: ref.vmid, directory, own: false }, isHere)
      .then((fed) => fed && this.#tellFetched(group));
  }

  #tellFetched({ clusterid, ticket }: CloneGroup): void {
    void this.#context.reports.migration(this.#context.host, ticket, { clusterid, fetched: true });
  }
}

// Carries out migrations: both hosts prepare, then the VM's host sends it. What has become of it the hosts say; one that does not answer
// is asked again, until it has answered or the other one has told that the VM runs there.

import { randomUUID } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import { movingOf, type Effect } from '@snowflock/cluster';
import {
  isErrorCode,
  SnowflockError,
  toSnowflockError,
  type MigrateReply,
  type MigrationReport,
  type SendVmReply,
  type VmRef,
} from '@snowflock/protocol';
import type { JobPorts } from './job-ports.ts';

const RETRY_MIN_MS = 250;
const RETRY_MAX_MS = 10_000;
/** What whoever asked for it waits for while a host does not answer; it goes on after that. */
const ANSWER_TIMEOUT_MS = 360_000;

export interface MigrationPorts extends JobPorts {
  /** Over a narrow link, pages that nobody waits for yet are compressed. */
  readonly compress: boolean;
}

export type Migrate = Extract<Effect, { type: 'migrate' }>;

type Outcome = { readonly pausedMs: number | null } | { readonly error: SnowflockError };

export class Migrations {
  readonly #ports: MigrationPorts;
  readonly #underWay = new Map<string, Promise<Outcome>>();

  constructor(ports: MigrationPorts) {
    this.#ports = ports;
  }

  /** Answers when it runs there; throws when it goes on where it was. */
  async migrate({ clusterid, vmid }: VmRef, host: string): Promise<MigrateReply> {
    const ticket = randomUUID();
    this.#ports.apply({ type: 'migrate', clusterid, vmid, host, ticket });
    const late = sleep(ANSWER_TIMEOUT_MS, undefined, { ref: false });
    const outcome = await Promise.race([this.#underWay.get(ticket), late]);
    if (!outcome)
      throw new SnowflockError(
        'timeout',
        `what became of VM ${clusterid}:${vmid} is not known yet: a host does not answer; sfstate shows where it is`,
      );
    if ('error' in outcome) throw outcome.error;
    return { host, ...outcome };
  }

  /** Carries out an effect. */
  start(effect: Migrate): void {
    const { ticket } = effect;
    const outcome = this.#run(effect)
      .catch((error: unknown): Outcome => ({ error: toSnowflockError(error) }))
      .finally(() => this.#underWay.delete(ticket));
    this.#underWay.set(ticket, outcome);
  }

  told(ticket: string, { clusterid, fetched }: MigrationReport): void {
    this.#ports.apply({ type: fetched ? 'migration-fetched' : 'migrated', clusterid, ticket });
  }

  async #run(effect: Migrate): Promise<Outcome> {
    const { clusterid, ticket, from } = effect;
    const { apply, closing } = this.#ports;
    try {
      await this.#prepare(effect);
    } catch (thrown) {
      const { code, message } = toSnowflockError(thrown);
      // Otherwise it has gone already: this is asked for once more after a restart of sfmd.
      if (code !== 'no-such-vm') return this.#stayed(effect, { code, message });
    }
    for (let waitMs = RETRY_MIN_MS; this.#isMoving(effect); waitMs = Math.min(2 * waitMs, RETRY_MAX_MS)) {
      const reply = await this.#ask(effect);
      if (reply?.state === 'moved') {
        if (this.#isMoving(effect)) apply({ type: 'migrated', clusterid, ticket });
        return { pausedMs: reply.pausedMs };
      }
      if (reply?.state === 'stayed') return this.#stayed(effect, { code: reply.code, message: reply.reason });
      await sleep(waitMs, undefined, { signal: closing, ref: false });
    }
    return this.#known(effect, from);
  }

  #stayed(effect: Migrate, { code, message }: { code: string; message: string }): Outcome {
    const { clusterid, vmid, ticket, from } = effect;
    this.#ports.applySometime({ type: 'migrate-failed', clusterid, ticket });
    const why = `VM ${clusterid}:${vmid} stays on host ${from}: ${message}`;
    return { error: new SnowflockError(isErrorCode(code) ? code : 'internal', why) };
  }

  /** How it came out, as the host that it went to has told, or the end of the VM. */
  #known({ clusterid, vmid, to }: Migrate, from: string): Outcome {
    const vm = this.#ports.system().clusters[clusterid]?.vms[vmid];
    if (vm?.host === to && vm.status === 'running') return { pausedMs: null };
    const why = `VM ${clusterid}:${vmid} was lost on its way from host ${from} to host ${to}`;
    return { error: new SnowflockError('vm-failed', `${why}: ${vm?.reason ?? 'it has ended'}`) };
  }

  async #prepare(effect: Migrate): Promise<void> {
    const { clusterid, vmid, vcpus, ticket, shape, diskBytes, origin } = effect;
    const { hosts, addressOf, compress, closing } = this.#ports;
    const [parent, to] = [addressOf(effect.from), addressOf(effect.to)];
    const moved = { origin: origin && { ticket: origin.ticket, parent: addressOf(origin.parentHost) } };
    const clones = [{ vmid, vcpus }];
    const wanted = { clusterid, ticket, shape, diskBytes, clones, parent, moved, compress };
    await Promise.all([
      hosts.prepareSource(parent, { clusterid, vmid, ticket, targets: [effect.to] }, closing),
      hosts.prepareClones(to, wanted, closing),
    ]);
  }

  /** Null: it did not say. */
  async #ask(effect: Migrate): Promise<SendVmReply | null> {
    const { hosts, addressOf, closing } = this.#ports;
    const { clusterid, vmid, ticket } = effect;
    const [at, to] = [addressOf(effect.from), addressOf(effect.to)];
    try {
      return await hosts.sendVm(at, { clusterid, vmid }, { ticket, to }, closing);
    } catch (error) {
      if (closing.aborted || !(error instanceof SnowflockError)) throw error;
      return null;
    }
  }

  #isMoving({ clusterid, vmid, ticket }: Migrate): boolean {
    const cluster = this.#ports.system().clusters[clusterid];
    return cluster !== undefined && movingOf(cluster, vmid)?.ticket === ticket;
  }
}

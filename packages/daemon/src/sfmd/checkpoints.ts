// What sfmd does about checkpoints: has hosts write and delete them, and tells whoever waits what came of it. The registry
// itself is part of the state (packages/cluster/src/checkpoints.ts).

import { randomUUID } from 'node:crypto';
import {
  parseVmRef,
  SnowflockError,
  toSnowflockError,
  type CheckpointInfo,
  type CheckpointReply,
  type CheckpointRequest,
  type CheckpointWritten,
} from '@snowflock/protocol';
import { checkpointInfo, checkpointList, findCheckpoint } from '@snowflock/cluster';
import type { JobPorts } from './job-ports.ts';

interface Waiter {
  readonly resolve: () => void;
  readonly reject: (error: SnowflockError) => void;
}

export class Checkpoints {
  readonly #ports: JobPorts;
  /** Whoever waits for a checkpoint to be on the disk, by its id. */
  readonly #waiting = new Map<string, Waiter>();

  constructor(ports: JobPorts) {
    this.#ports = ports;
    ports.closing.addEventListener('abort', () => {
      for (const { reject } of this.#waiting.values()) reject(ports.closing.reason as SnowflockError);
    });
  }

  list(): CheckpointInfo[] {
    return checkpointList(this.#ports.system());
  }

  info(name: string): CheckpointInfo {
    const system = this.#ports.system();
    return checkpointInfo(system, findCheckpoint(system, name));
  }

  /** Answers when the VM goes on, or (`wait`) when the checkpoint is on the disk; it is made also when the caller goes away. */
  async create(request: CheckpointRequest, signal: AbortSignal): Promise<CheckpointReply> {
    const { apply, applySometime, hosts, addressOf, closing } = this.#ports;
    const { name, description, vm, wait } = request;
    const id = randomUUID();
    const asked = { name, id, vm: parseVmRef(vm), description, createdAtMs: Date.now() };
    const effect = apply({ type: 'checkpoint', ...asked }).find(({ type }) => type === 'write-checkpoint');
    if (effect?.type !== 'write-checkpoint') throw new Error('a checkpoint without a host');
    const { host } = effect;
    const written = this.#written(id, signal);
    written.catch(() => undefined); // awaited below, unless nobody waits
    try {
      const { pauseMs } = await hosts.writeCheckpoint(
        addressOf(host),
        { id, name, description, vm },
        closing,
      );
      if (wait) await written;
      return { ...this.info(name), pauseMs };
    } catch (thrown) {
      const { code, message } = toSnowflockError(thrown);
      const failed: CheckpointWritten = { ok: false, id, reason: message };
      // Without effect when its host has told already.
      if (!signal.aborted) applySometime({ type: 'checkpoint-written', name, host, written: failed });
      throw new SnowflockError(code, `no checkpoint '${name}' was made of VM ${vm}: ${message}`, {
        cause: thrown,
      });
    } finally {
      this.#waiting.delete(id);
    }
  }

  async delete(name: string, options: { readonly force: boolean }): Promise<void> {
    const { apply, applySometime, hosts, addressOf, closing, system } = this.#ports;
    apply({ type: 'delete-checkpoint', name, ...options });
    const { id, host } = findCheckpoint(system(), name);
    try {
      if (system().hosts[host]?.up) await hosts.deleteCheckpoint(addressOf(host), { name, id }, closing);
      applySometime({ type: 'checkpoint-deleted', name, id, kept: false });
    } catch (thrown) {
      applySometime({ type: 'checkpoint-deleted', name, id, kept: true });
      const { code, message } = toSnowflockError(thrown);
      throw new SnowflockError(code, `checkpoint '${name}' was not deleted: ${message}`, { cause: thrown });
    }
  }

  /** Told by the host that was to write it. */
  written(name: string, host: string, written: CheckpointWritten): void {
    this.#ports.apply({ type: 'checkpoint-written', name, host, written });
    if (written.ok) this.#waiting.get(written.held.id)?.resolve();
  }

  failed({ id, reason }: { readonly id: string; readonly reason: string }): void {
    this.#waiting.get(id)?.reject(new SnowflockError('no-resources', reason));
  }

  #written(id: string, signal: AbortSignal): Promise<void> {
    return new Promise((resolve, reject) => {
      this.#waiting.set(id, { resolve, reject });
      signal.addEventListener('abort', () => reject(toSnowflockError(signal.reason)));
    });
  }
}

// The checkpoints of a system: states of running VMs kept under names. A new cluster is started from one with
// System.seed({ checkpoint: NAME }).

import {
  CheckpointInfo,
  CheckpointReply,
  NoReply,
  type CheckpointRequest,
  type ControlRequest,
} from '@snowflock/protocol';
import { z } from 'zod';
import type { CallOptions } from './call-options.ts';
import type { Reach } from './reach.ts';

const ANSWER_TIMEOUT_MS = 10_000;
/** Gigabytes to a slow disk. */
const WRITE_TIMEOUT_MS = 3_600_000;
const DELETE_TIMEOUT_MS = 30_000;

export interface CheckpointOptions extends CallOptions {
  /** For people. */
  readonly description?: string | undefined;
  /** Until it is on the disk, by default; else only until the VM goes on. */
  readonly wait?: boolean | undefined;
}

export class Checkpoints {
  readonly #reach: Reach;

  constructor(reach: Reach) {
    this.#reach = reach;
  }

  /** Of a running VM, as `clusterid:vmid`, which is paused for some ms. It is made also if the signal aborts meanwhile. */
  create(vm: string, name: string, options: CheckpointOptions = {}): Promise<CheckpointReply> {
    const { description = '', wait = true, signal } = options;
    const body: CheckpointRequest = { name, vm, description, wait };
    return this.#ask(
      { method: 'POST', path: '', body, reply: CheckpointReply, timeoutMs: WRITE_TIMEOUT_MS },
      signal,
    );
  }

  list({ signal }: CallOptions = {}): Promise<CheckpointInfo[]> {
    const reply = z.array(CheckpointInfo);
    return this.#ask({ method: 'GET', path: '', reply, timeoutMs: ANSWER_TIMEOUT_MS }, signal);
  }

  /** Throws `no-such-checkpoint`. */
  get(name: string, { signal }: CallOptions = {}): Promise<CheckpointInfo> {
    const path = `/${encodeURIComponent(name)}`;
    return this.#ask({ method: 'GET', path, reply: CheckpointInfo, timeoutMs: ANSWER_TIMEOUT_MS }, signal);
  }

  /** Refused with `checkpoint-in-use` while a cluster that was started from it is there; forced, forgets it also if its host is down. */
  async delete(
    name: string,
    options: CallOptions & { readonly force?: boolean | undefined } = {},
  ): Promise<void> {
    const { force = false, signal } = options;
    const path = `/${encodeURIComponent(name)}${force ? '?force=1' : ''}`;
    await this.#ask({ method: 'DELETE', path, reply: NoReply, timeoutMs: DELETE_TIMEOUT_MS }, signal);
  }

  #ask<T>(request: ControlRequest<T>, signal: AbortSignal | undefined): Promise<T> {
    const path = `/checkpoints${request.path}`;
    return this.#reach.ask({ ...request, path, ...(signal && { signal }) });
  }
}

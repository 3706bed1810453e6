// What the supervisor's ends of memserver and memtap have in common: a process, its control connection, its events.
//
//   started or attached --> live --exit--> gone          dispose: stop, then SIGKILL after a deadline
//
// Owns the control connection always; the process only by `dispose`: `detach` leaves it running for a successor.

import type { z } from 'zod';
import { SnowflockError } from '@snowflock/protocol/pages';
import { ControlClient } from '../control/control-client.ts';
import {
  type ExitStatus,
  signalIfAlive,
  startChild,
  type StartedChild,
  watchForeignPid,
} from './child-process.ts';

const CONNECT_TIMEOUT_MS = 5000;
/** Control calls do no network I/O of their own; seconds mean that something is badly wrong. */
export const CALL_TIMEOUT_MS = 10_000;
const STOP_TIMEOUT_MS = 5000;
const FOREIGN_POLL_MS = 100;

export interface SourceLostEvent {
  readonly event: 'source-lost';
  readonly reason: string;
}

export abstract class ManagedProcess implements AsyncDisposable {
  readonly pid: number;
  readonly controlPath: string;
  /** Resolves, never rejects, when the process is gone. */
  readonly exited: Promise<ExitStatus>;
  readonly #name: string;
  readonly #control: ControlClient;
  readonly #listeners = new Set<(event: SourceLostEvent) => void>();

  protected constructor(connection: ProcessConnection) {
    this.#name = connection.name;
    this.pid = connection.pid;
    this.controlPath = connection.controlPath;
    this.exited = connection.exited;
    this.#control = connection.control;
    connection.onEvent = (event) => this.#emit(event);
  }

  /** Calls `listener` when the snapshot can no longer be read. Returns what ends the subscription. */
  onSourceLost(listener: (event: SourceLostEvent) => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  /** Asks the process to leave and waits until it has; kills it when it does not. */
  async stop(): Promise<void> {
    await this.#control.call('stop', {}, { timeoutMs: STOP_TIMEOUT_MS }).catch((error: unknown) => {
      if (!(error instanceof SnowflockError)) throw error;
      // it is gone or deaf; the signal below tells which
      signalIfAlive(this.pid, 'SIGTERM');
    });
    const late = setTimeout(() => signalIfAlive(this.pid, 'SIGKILL'), STOP_TIMEOUT_MS);
    await this.exited;
    clearTimeout(late);
    this.#control.close();
    await this.afterExit();
  }

  /** Lets go of the process without ending it. */
  detach(): void {
    this.#control.close();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.stop();
  }

  /** What is left to clean up once the process is gone. */
  protected async afterExit(): Promise<void> {
    return undefined;
  }

  protected async call<Reply>(
    op: string,
    fields: object,
    schema: z.ZodType<Reply>,
    timeoutMs = CALL_TIMEOUT_MS,
  ): Promise<Reply> {
    const reply = schema.safeParse(await this.#control.call(op, fields, { timeoutMs }));
    if (!reply.success)
      throw new SnowflockError('internal', `${this.#name}: bad reply to '${op}': ${reply.error.message}`);
    return reply.data;
  }

  #emit(message: Record<string, unknown>): void {
    const { event, reason } = message;
    if (event !== 'source-lost' || typeof reason !== 'string') return;
    for (const listener of this.#listeners) listener({ event, reason });
  }
}

/** A process with its control connection, before it has its typed face. */
export interface ProcessConnection {
  readonly name: string;
  readonly pid: number;
  readonly controlPath: string;
  readonly exited: Promise<ExitStatus>;
  readonly control: ControlClient;
  /** Set by the owner; events before that are lost, and none is sent before the first call. */
  onEvent: (event: Record<string, unknown>) => void;
}

export async function startManaged(options: {
  readonly name: string;
  readonly script: URL;
  readonly v8Flags?: readonly string[];
  readonly args: readonly string[];
  readonly env?: Readonly<Record<string, string>>;
  readonly controlPath: string;
  readonly logPath: string;
}): Promise<ProcessConnection & { readonly ready: Record<string, unknown> }> {
  const child = await startChild(options);
  try {
    return Object.assign(await connectManaged({ ...options, child }), { ready: child.ready });
  } catch (error) {
    signalIfAlive(child.pid, 'SIGKILL');
    throw error;
  }
}

/** Connects to a process that is started already: by us just now, or by a supervisor before us. */
export async function connectManaged(options: {
  readonly name: string;
  readonly controlPath: string;
  readonly child: StartedChild | { readonly pid: number };
}): Promise<ProcessConnection> {
  const { name, controlPath, child } = options;
  let owner: ProcessConnection | undefined = undefined;
  const control = await ControlClient.connect({
    path: controlPath,
    peer: name,
    timeoutMs: CONNECT_TIMEOUT_MS,
    onEvent: (event) => owner?.onEvent(event),
  });
  const exited = 'exited' in child ? child.exited : watchForeignPid(child.pid, { pollMs: FOREIGN_POLL_MS });
  owner = { name, pid: child.pid, controlPath, exited, control, onEvent: () => undefined };
  return owner;
}

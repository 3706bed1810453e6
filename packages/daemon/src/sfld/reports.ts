// What sfmd must learn from this host, kept until it has: sfmd may be away for a while. Ends of VMs and outcomes of launches.
//
// Sent in order, one at a time; tried at once and again before each host report (run.ts), so that sfmd learns why a VM is gone
// before it learns that it is. A refusal is an answer: sfmd has forgotten the VM.

import {
  NoReply,
  SnowflockError,
  type CheckpointWritten,
  type LaunchReport,
  type MigrationReport,
  type VmEnded,
  type VmRef,
} from '@snowflock/protocol';
import type { ControlClient } from '@snowflock/protocol';
import { logAbout, type Log, type LogSubject } from '../log.ts';

const REQUEST_TIMEOUT_MS = 10_000;
/** More ends than this in one absence of sfmd: it will miss the VMs in the host reports, and only the reason is lost. */
const PENDING_MAX = 4096;

interface Report {
  readonly about: LogSubject;
  readonly path: string;
  readonly body: VmEnded | LaunchReport | CheckpointWritten | MigrationReport;
  readonly delivered: () => void;
}

export class Reports {
  readonly #masterDaemon: Pick<ControlClient, 'request'>;
  readonly #log: Log;
  readonly #pending: Report[] = [];
  #flushing: Promise<void> | null = null;

  constructor(options: { readonly masterDaemon: Pick<ControlClient, 'request'>; readonly log: Log }) {
    this.#masterDaemon = options.masterDaemon;
    this.#log = options.log;
  }

  /** Resolves when sfmd knows. */
  ended(vm: VmRef, ended: VmEnded): Promise<void> {
    return this.#add(vm, `/v1/clusters/${vm.clusterid}/vms/${vm.vmid}/ended`, ended);
  }

  /** Resolves when sfmd knows. */
  launched(clusterid: number, ticket: string, report: LaunchReport): Promise<void> {
    return this.#add({ clusterid, ticket }, `/v1/clusters/${clusterid}/tickets/${ticket}/launched`, report);
  }

  /** Resolves when sfmd knows. */
  checkpointWritten(host: string, name: string, written: CheckpointWritten): Promise<void> {
    return this.#add({}, `/v1/hosts/${encodeURIComponent(host)}/checkpoints/${name}`, written);
  }

  /** Resolves when sfmd knows. */
  migration(host: string, ticket: string, report: MigrationReport): Promise<void> {
    const { clusterid } = report;
    return this.#add(
      { clusterid, ticket },
      `/v1/hosts/${encodeURIComponent(host)}/migrations/${ticket}`,
      report,
    );
  }

  /** Tries to send all that waits; resolves when that is done or sfmd cannot be reached. */
  flush(): Promise<void> {
    this.#flushing ??= this.#send().finally(() => (this.#flushing = null));
    return this.#flushing;
  }

  #add(about: LogSubject, path: string, body: Report['body']): Promise<void> {
    if (this.#pending.length >= PENDING_MAX) {
      logAbout(this.#log, about).error({ path }, 'sfmd was away for too long: this report is dropped');
      return Promise.resolve();
    }
    return new Promise((resolve) => {
      this.#pending.push({ about, path, body, delivered: resolve });
      void this.flush();
    });
  }

  async #send(): Promise<void> {
    for (let report = this.#pending[0]; report; report = this.#pending[0]) {
      const { about, path, body, delivered } = report;
      try {
        await this.#masterDaemon.request({
          method: 'POST',
          path,
          body,
          reply: NoReply,
          timeoutMs: REQUEST_TIMEOUT_MS,
        });
      } catch (error) {
        if (!(error instanceof SnowflockError)) throw error;
        const { code, message } = error;
        if (code === 'host-down' || code === 'timeout' || code === 'unavailable') {
          logAbout(this.#log, about).warn({ path, reason: message }, 'sfmd could not be told; it will be');
          return;
        }
        logAbout(this.#log, about).info({ path, reason: message }, 'sfmd did not want to know');
      }
      this.#pending.shift();
      delivered();
    }
  }
}

// What daemon-command.ts and background.ts must know of a daemon.

import type { ConfigSources, Configured, ControlClient } from '@snowflock/protocol';
import type { Log } from './log.ts';
import type { DaemonPlace } from './pid-file.ts';

export interface DaemonConfig {
  readonly runDir: string;
  readonly stateDir: string;
}

export interface RunOptions {
  readonly log: Log;
  /** Called with the TCP port once all listeners are open. */
  readonly onReady: (port: number) => void;
  /** Aborts to stop. */
  readonly signal: AbortSignal;
}

export interface DaemonProgram<C extends DaemonConfig> {
  readonly name: DaemonPlace['name'];
  /** For people, as 'the master daemon'. */
  readonly title: string;
  /** What becomes of VMs when it is stopped, for people. */
  readonly whenStopped: string;
  /** Ends what would run on without it: `stop --vms`. */
  readonly endVms?: (client: ControlClient) => Promise<void>;
  /** The file that calls daemonCommand: it is started again with `run`. */
  readonly main: string;
  /** From `start` to its listeners being open. */
  readonly readyTimeoutMs: number;
  /** From SIGTERM to its end; then it is killed. */
  readonly stopTimeoutMs: number;
  /** Names of all options. */
  readonly options: readonly string[];
  readonly configure: (sources: ConfigSources) => Configured<C>;
  /** Runs until the signal aborts; resolves when nothing of it is left. */
  readonly run: (config: C, options: RunOptions) => Promise<void>;
  /** How it does, in words, asked over its unix socket. */
  readonly describe: (client: ControlClient) => Promise<string>;
}

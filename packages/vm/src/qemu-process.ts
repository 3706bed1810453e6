// One QEMU process: started detached (it outlives a restart of its daemon), its end noticed at once and explained.
//
//   starting ──ready──▶ running ──exit──▶ ended
//       └───────────exit/deadline────────▶ ended
//
// Invariant: `ended` resolves exactly once, after the process is gone.

import { spawn, type ChildProcess } from 'node:child_process';
import { closeSync, mkdirSync, openSync, readFileSync, writeFileSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { SnowflockError } from '@snowflock/protocol';
import { ForkControl } from './fork-control.ts';
import { buildQemuArgs, type VmSpec } from './qemu-args.ts';
import { Qmp } from './qmp.ts';

/** QEMU needs about 55 ms to its QMP socket; a loaded host may need much longer. */
const START_TIMEOUT_MS = 20_000;
const EXIT_GRACE_MS = 500;
const STDERR_TAIL_BYTES = 1_000;

export interface VmEnd {
  readonly exitCode: number | null;
  readonly signal: NodeJS.Signals | null;
  /** One sentence for a person. */
  readonly reason: string;
}

export class QemuProcess {
  readonly spec: VmSpec;
  readonly pid: number;
  readonly qmp: Qmp;
  readonly forkControl: ForkControl;
  readonly ended: Promise<VmEnd>;
  readonly #child: ChildProcess;

  private constructor(
    spec: VmSpec,
    parts: { child: ChildProcess; pid: number; qmp: Qmp; forkControl: ForkControl; ended: Promise<VmEnd> },
  ) {
    this.spec = spec;
    this.#child = parts.child;
    this.pid = parts.pid;
    this.qmp = parts.qmp;
    this.forkControl = parts.forkControl;
    this.ended = parts.ended;
  }

  static async start(
    spec: VmSpec,
    options: { forkShim: string; env?: Record<string, string> },
  ): Promise<QemuProcess> {
    mkdirSync(spec.paths.directory, { recursive: true, mode: 0o700 });
    const log = openSync(spec.paths.stderr, 'a', 0o600);
    const child = spawn('qemu-system-x86_64', buildQemuArgs(spec), {
      detached: true,
      stdio: ['ignore', log, log],
      env: {
        ...options.env,
        PATH: process.env['PATH'] ?? '/usr/bin:/bin',
        LD_PRELOAD: options.forkShim,
        SNOWFLOCK_FORK_SOCKET: spec.paths.fork,
        ...(spec.ram.kind === 'file' && !spec.ram.share ? { SNOWFLOCK_RAM_FILE: spec.ram.path } : {}),
      },
    });
    closeSync(log);
    const ended = watchEnd(child, spec);
    if (child.pid === undefined) throw new SnowflockError('vm-failed', (await ended).reason);
    writeFileSync(spec.paths.pid, `${child.pid}\n`);
    try {
      const ready = { timeoutMs: START_TIMEOUT_MS, gone: ended };
      const [qmp, forkControl] = await Promise.all([
        Qmp.connect(spec.paths.qmp, ready),
        ForkControl.connect(spec.paths.fork, ready),
      ]);
      return new QemuProcess(spec, { child, pid: child.pid, qmp, forkControl, ended });
    } catch (error) {
      // A QEMU that refuses its arguments closes its sockets a moment before it is gone.
      const died = await Promise.race([ended.then(() => true), sleep(EXIT_GRACE_MS).then(() => false)]);
      child.kill('SIGKILL');
      const end = await ended;
      throw died ? new SnowflockError('vm-failed', end.reason, { cause: error }) : error;
    }
  }

  /** Ends the VM at once, without asking the guest. Resolves when the process is gone. */
  async kill(): Promise<VmEnd> {
    this.#child.kill('SIGKILL');
    const end = await this.ended;
    this.qmp.close();
    this.forkControl.close();
    return end;
  }
}

function watchEnd(child: ChildProcess, spec: VmSpec): Promise<VmEnd> {
  return new Promise((resolve) => {
    child.once('error', (error) =>
      resolve({
        exitCode: null,
        signal: null,
        reason: `VM ${spec.name} could not be started: ${error.message}`,
      }),
    );
    child.once('exit', (exitCode, signal) => {
      const how = signal
        ? `was ended by ${signal}`
        : exitCode === 0
          ? 'powered off'
          : `exited with status ${exitCode}`;
      const said = exitCode === 0 ? '' : stderrTail(spec.paths.stderr);
      resolve({ exitCode, signal, reason: `VM ${spec.name} ${how}${said ? `; QEMU said: ${said}` : ''}` });
    });
  });
}

function stderrTail(path: string): string {
  try {
    return readFileSync(path, 'utf8').slice(-STDERR_TAIL_BYTES).trim();
  } catch (error) {
    return `(its log cannot be read: ${String(error)})`;
  }
}

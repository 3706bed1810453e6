// One QEMU process: started detached (it outlives its daemon), or adopted from the daemon before; its end noticed at once and
// explained.
//
//   starting ──ready──▶ running ──exit──▶ ended          adopted ──▶ running
//       └───────────exit/deadline────────▶ ended
//
// Invariant: `ended` resolves exactly once, after the process is gone.

import { spawn, type ChildProcess } from 'node:child_process';
import { closeSync, mkdirSync, openSync, writeFileSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { SnowflockError } from '@snowflock/protocol';
import { ForkControl } from './fork-control.ts';
import { LastWords, type VmEnd } from './last-words.ts';
import { isRunning, killProcess, markProcess, type ProcessMark } from './process-mark.ts';
import { buildQemuArgs, type VmPaths, type VmSpec } from './qemu-args.ts';
import { Qmp } from './qmp.ts';

/** QEMU needs about 55 ms to its QMP socket; a loaded host may need much longer. */
const START_TIMEOUT_MS = 20_000;
const EXIT_GRACE_MS = 500;
/** A QEMU closes its sockets as it ends; gigabytes of memory take the kernel a while longer. */
const GONE_POLL_MS = 10;

export class QemuProcess {
  readonly name: string;
  readonly paths: VmPaths;
  readonly mark: ProcessMark;
  readonly qmp: Qmp;
  readonly forkControl: ForkControl;
  readonly ended: Promise<VmEnd>;
  /** Null for an adopted one. */
  readonly #child: ChildProcess | null;

  private constructor(
    vm: { readonly name: string; readonly paths: VmPaths },
    parts: {
      child: ChildProcess | null;
      mark: ProcessMark;
      qmp: Qmp;
      forkControl: ForkControl;
      ended: Promise<VmEnd>;
    },
  ) {
    this.name = vm.name;
    this.paths = vm.paths;
    this.#child = parts.child;
    this.mark = parts.mark;
    this.qmp = parts.qmp;
    this.forkControl = parts.forkControl;
    this.ended = parts.ended;
  }

  static async start(
    spec: VmSpec,
    options: {
      forkShim: string;
      env?: Record<string, string>;
      /** Called as soon as there is a process, before it is ready. */
      onSpawned?: (mark: ProcessMark) => void;
    },
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
    const lastWords = new LastWords(spec);
    const ended = watchChild(child, lastWords);
    if (child.pid === undefined) throw new SnowflockError('vm-failed', (await ended).reason);
    try {
      writeFileSync(spec.paths.pid, `${child.pid}\n`);
      const mark = markProcess(child.pid);
      if (mark) options.onSpawned?.(mark);
      const ready = { timeoutMs: START_TIMEOUT_MS, gone: ended };
      const [qmp, forkControl] = await Promise.all([
        Qmp.connect(spec.paths.qmp, ready),
        ForkControl.connect(spec.paths.fork, ready),
      ]);
      if (!mark) throw new SnowflockError('vm-failed', (await ended).reason);
      lastWords.listen(qmp);
      return new QemuProcess(spec, { child, mark, qmp, forkControl, ended });
    } catch (error) {
      // A QEMU that refuses its arguments closes its sockets a moment before it is gone.
      const died = await Promise.race([ended.then(() => true), sleep(EXIT_GRACE_MS).then(() => false)]);
      child.kill('SIGKILL');
      const end = await ended;
      throw died ? new SnowflockError('vm-failed', end.reason, { cause: error }) : error;
    }
  }

  /** Takes over a QEMU that a daemon before this one started. Throws 'vm-failed' when it does not run any more. */
  static async adopt(
    vm: { readonly name: string; readonly paths: VmPaths },
    mark: ProcessMark,
  ): Promise<QemuProcess> {
    if (!isRunning(mark))
      throw new SnowflockError('vm-failed', `VM ${vm.name} ended while no sfld ran on its host`);
    const ready = { timeoutMs: START_TIMEOUT_MS };
    await using undo = new AsyncDisposableStack();
    const qmp = await Qmp.connect(vm.paths.qmp, ready);
    undo.defer(() => qmp.close());
    const ended = watchAdopted(qmp, mark, new LastWords(vm));
    const forkControl = await ForkControl.connect(vm.paths.fork, { ...ready, gone: ended });
    undo.move();
    return new QemuProcess(vm, { child: null, mark, qmp, forkControl, ended });
  }

  get pid(): number {
    return this.mark.pid;
  }

  /** Ends the VM at once, without asking the guest. Resolves when the process is gone. */
  async kill(): Promise<VmEnd> {
    if (this.#child) this.#child.kill('SIGKILL');
    else killProcess(this.mark);
    const end = await this.ended;
    this.detach();
    return end;
  }

  /** Lets go of it: it runs on, for a daemon after this one to adopt. */
  detach(): void {
    this.qmp.close();
    this.forkControl.close();
    this.#child?.unref();
  }
}

function watchChild(child: ChildProcess, lastWords: LastWords): Promise<VmEnd> {
  return new Promise((resolve) => {
    child.once('error', (error) =>
      resolve({ byGuest: false, reason: `VM ${lastWords.name} could not be started: ${error.message}` }),
    );
    child.once('exit', (exitCode, signal) => {
      void lastWords.heard.then(() => resolve(lastWords.end({ exitCode, signal })));
    });
  });
}

/** Only its parent learns how a process ended. For an adopted one the closing of QMP says that it did, and QEMU's last event why. */
function watchAdopted(qmp: Qmp, mark: ProcessMark, lastWords: LastWords): Promise<VmEnd> {
  lastWords.listen(qmp);
  return new Promise((resolve) => {
    const onClose = async (): Promise<void> => {
      while (isRunning(mark)) await sleep(GONE_POLL_MS, undefined, { ref: false });
      resolve(lastWords.end(null));
    };
    qmp.once('close', () => void onClose());
  });
}

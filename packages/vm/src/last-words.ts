// Why a VM ended: from what QEMU said last over QMP and on standard error, how its process ended, and the guest's console.

import { closeSync, fstatSync, openSync, readSync } from 'node:fs';
import type { VmPaths } from './qemu-args.ts';
import type { Qmp } from './qmp.ts';

const STDERR_TAIL_BYTES = 1_000;
/** A panic prints its registers and a call trace of a few KiB below the line that counts. */
const CONSOLE_TAIL_BYTES = 32 << 10;
const PANIC = /Kernel panic - not syncing[^\r\n]*/;

export interface VmEnd {
  /** The guest powered itself off or rebooted, which ends a VM too; otherwise the VM is lost. */
  readonly byGuest: boolean;
  /** One sentence for a person. */
  readonly reason: string;
}

export interface ProcessExit {
  readonly exitCode: number | null;
  readonly signal: NodeJS.Signals | null;
}

export class LastWords {
  readonly name: string;
  readonly #paths: VmPaths;
  /** `reason` of QMP's SHUTDOWN event; null when the guest did not ask for the end. */
  #shutdown: string | null = null;
  #heard: Promise<void> = Promise.resolve();

  constructor(vm: { readonly name: string; readonly paths: VmPaths }) {
    this.name = vm.name;
    this.#paths = vm.paths;
  }

  listen(qmp: Qmp): void {
    qmp.on('event', (event: string, data: Record<string, unknown>) => {
      if (event === 'SHUTDOWN' && data['guest'] === true) this.#shutdown = String(data['reason']);
    });
    this.#heard = new Promise((resolve) => qmp.once('close', resolve));
  }

  /** Until QMP has nothing more to say: its last event may be read after the process is known to be gone. */
  get heard(): Promise<void> {
    return this.#heard;
  }

  /** `exit` is null for a process that was another one's child: how it ended is not known. */
  end(exit: ProcessExit | null): VmEnd {
    if (this.#shutdown === 'guest-reset' || this.#shutdown === 'guest-panic') return this.#reset();
    if (this.#shutdown !== null) return { byGuest: true, reason: `VM ${this.name} powered off` };
    const said = tail(this.#paths.stderr, STDERR_TAIL_BYTES);
    return { byGuest: false, reason: `VM ${this.name} ${how(exit)}${said ? `; QEMU said: ${said}` : ''}` };
  }

  /** Guests reboot at once when they panic (the images' kernel command line), and VMs end when they reboot. */
  #reset(): VmEnd {
    const panic = PANIC.exec(tail(this.#paths.consoleLog, CONSOLE_TAIL_BYTES))?.[0];
    return panic === undefined
      ? { byGuest: true, reason: `VM ${this.name} rebooted, which ends it` }
      : { byGuest: false, reason: `VM ${this.name} crashed: its console says: ${panic}` };
  }
}

function how(exit: ProcessExit | null): string {
  if (exit?.signal) return `was ended by ${exit.signal}`;
  if (exit) return `exited with status ${exit.exitCode}`;
  return 'was killed or has crashed';
}

function tail(path: string, bytes: number): string {
  try {
    const fd = openSync(path, 'r');
    try {
      const from = Math.max(0, fstatSync(fd).size - bytes);
      const buffer = Buffer.alloc(bytes);
      return buffer.toString('utf8', 0, readSync(fd, buffer, 0, bytes, from)).trim();
    } finally {
      closeSync(fd);
    }
  } catch (error) {
    return `(its log cannot be read: ${String(error)})`;
  }
}

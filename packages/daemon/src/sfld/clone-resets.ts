// Resets of the clones of one group.
//
//   running ──reset──▶ rewinding ──────────────▶ launching ──▶ running
//                         └─cannot─▶ restarting ──┘ └─fails─▶ lost
//
// A clone goes back in the QEMU that it has (packages/vm/src/rewind.ts); where that fails, it gets a new one.
//
// Invariants: one reset of a clone at a time; an end of a clone that is being reset is looked at when the reset is over; the journal
// says that it is being reset for as long as its QEMU is neither what it was nor what it will be.

import {
  formatVmRef,
  SnowflockError,
  toSnowflockError,
  type Descriptor,
  type VmRef,
} from '@snowflock/protocol';
import type { Log } from '../log.ts';
import type { CloneVm } from './clone-vm.ts';

export interface CloneResetPorts {
  readonly forkPoint: () => Promise<Descriptor>;
  /** Puts into the journal that it is being reset, or that it is not any more. */
  readonly record: (vmid: number, resetting: boolean) => void;
  /** From here on it is the clone, in the same QEMU. */
  readonly replace: (clone: CloneVm) => void;
  /** Ends its QEMU, and answers one that waits in a new one. Throws where it must not. */
  readonly restart: (vmid: number, old: CloneVm) => Promise<CloneVm>;
  /** It could not be started again. */
  readonly lost: (vm: VmRef, clone: CloneVm | null, reason: string) => Promise<void>;
  readonly log: Log;
}

export class CloneResets {
  readonly #ports: CloneResetPorts;
  readonly #under = new Map<number, Promise<void>>();

  constructor(ports: CloneResetPorts) {
    this.#ports = ports;
  }

  async reset(clone: CloneVm): Promise<void> {
    const { vmid } = clone.ref;
    if (this.#under.has(vmid))
      throw new SnowflockError('busy', `VM ${formatVmRef(clone.ref)} is being reset already`);
    const reset = this.#reset(clone);
    const over = reset.catch(() => undefined); // its caller gets the error
    this.#under.set(vmid, over);
    void over.then(() => this.#under.delete(vmid));
    return reset;
  }

  /** Resolves when this clone, or none, is being reset. Never rejects. */
  async over(vmid?: number): Promise<void> {
    if (vmid === undefined) await Promise.all(this.#under.values());
    else await this.#under.get(vmid);
  }

  async #reset(old: CloneVm): Promise<void> {
    const { ref } = old;
    const forkPoint = await this.#ports.forkPoint();
    this.#ports.record(ref.vmid, true);
    this.#ports.log.info({ vmid: ref.vmid }, 'clone is reset');
    let fresh: CloneVm | null = null;
    try {
      fresh = (await this.#rewind(old, forkPoint)) ?? (await this.#ports.restart(ref.vmid, old));
      await fresh.launch(forkPoint);
    } catch (thrown) {
      await this.#ports.lost(ref, fresh, `its reset failed: ${toSnowflockError(thrown).message}`);
      throw thrown;
    }
    this.#ports.record(ref.vmid, false);
  }

  async #rewind(old: CloneVm, { deviceState }: Descriptor): Promise<CloneVm | null> {
    try {
      const fresh = await old.rewind(deviceState);
      this.#ports.replace(fresh);
      return fresh;
    } catch (error) {
      this.#ports.log.warn(
        { vmid: old.ref.vmid, err: error },
        'it cannot be reset in its QEMU, and gets a new one',
      );
      return null;
    }
  }
}

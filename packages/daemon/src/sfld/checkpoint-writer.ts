// Making a checkpoint of a VM of this host.
//
//   starting ──▶ freezing (the VM is paused for ms) ──▶ writing, in the background ──▶ told to sfmd: written, or why not
//
// Each has a memserver of its own, which owns the frozen memory and disk and writes them out. Nothing of it is in the journal:
// when sfld ends before the checkpoint has its name, the next one sweeps all of it away.

import { randomBytes } from 'node:crypto';
import { mkdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import {
  CHECKPOINT_VERSION,
  PAGE_KEY_BYTES,
  toSnowflockError,
  type CheckpointFrozen,
  type HeldCheckpoint,
  type WriteCheckpoint,
} from '@snowflock/protocol';
import { MemserverProcess } from '@snowflock/replication';
import type { NewCheckpoint } from './checkpoint-store.ts';
import type { HostContext } from './context.ts';
import type { FrozenForCheckpoint, VmForks } from './vm-forks.ts';

export class CheckpointWriter {
  readonly #context: HostContext;
  readonly #underWay = new Map<string, UnderWay>();

  constructor(context: HostContext) {
    this.#context = context;
  }

  /** Resolves when the VM runs again. */
  async write(request: WriteCheckpoint, vm: VmForks): Promise<CheckpointFrozen> {
    const { id } = request;
    const { checkpoints } = this.#context;
    await using undo = new AsyncDisposableStack();
    const place = await checkpoints.begin(request);
    undo.defer(() => checkpoints.abandon(place));
    const memserver = await this.#memserver(id, vm, undo);
    const frozen = await vm.freezeFor(id, memserver.leasePath);
    undo.defer(() => vm.forkOver(id));
    const { upstream, diskBytes } = vm;
    const { ram } = frozen;
    await memserver.freeze({
      pid: frozen.process.pid,
      ramRanges: [{ start: ram.start.toString(16), length: ram.length }],
      ...(upstream ? { upstream: { ramPath: upstream.ramPath, presencePath: upstream.presencePath } } : {}),
      ...(frozen.disk ? { disk: { format: 'qcow2', path: frozen.disk.path, sizeBytes: diskBytes } } : {}),
    });
    const resources = undo.move();
    this.#underWay.set(id, { upstream: upstream?.ticket ?? null, resources });
    void this.#finish(request, { vm, memserver, place, frozen });
    return { pauseMs: frozen.timings.pauseMs };
  }

  /** Whether one is being written of a clone of this ticket. */
  reads(ticket: string): boolean {
    return [...this.#underWay.values()].some(({ upstream }) => upstream === ticket);
  }

  /** Gives up what is under way. */
  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all([...this.#underWay.values()].map(({ resources }) => resources.disposeAsync()));
  }

  async #memserver(id: string, vm: VmForks, undo: AsyncDisposableStack): Promise<MemserverProcess> {
    const { runDir, address } = this.#context;
    const directory = join(runDir, 's', `c-${id.slice(0, 8)}`);
    await mkdir(directory, { recursive: true, mode: 0o700 });
    undo.defer(() => rm(directory, { recursive: true, force: true }));
    const memserver = await MemserverProcess.start({
      controlPath: join(directory, 'ctl'),
      leasePath: join(directory, 'lease'),
      listenAddress: address,
      logPath: join(runDir, 'memserver.log'),
      subject: vm.ref,
    });
    undo.use(memserver);
    // Nobody is told the key: it serves no one.
    await memserver.configure({ key: randomBytes(PAGE_KEY_BYTES) });
    return memserver;
  }

  async #finish(request: WriteCheckpoint, parts: WriterParts): Promise<void> {
    const { id, name } = request;
    const { host, reports, log } = this.#context;
    const resources = this.#underWay.get(id)?.resources;
    try {
      const held = await this.#writeOut(request, parts);
      log.info({ checkpoint: name, sizeBytes: held.sizeBytes }, 'checkpoint written');
      void reports.checkpointWritten(host, name, { ok: true, held });
    } catch (thrown) {
      const reason = toSnowflockError(thrown).message;
      log.error({ checkpoint: name, reason }, 'checkpoint not written');
      void reports.checkpointWritten(host, name, { ok: false, id, reason: reason.slice(0, REASON_MAX) });
    } finally {
      this.#underWay.delete(id);
      await resources
        ?.disposeAsync()
        .catch((error: unknown) => log.error({ err: error }, 'a checkpoint could not be cleaned up'));
    }
  }

  async #writeOut(request: WriteCheckpoint, parts: WriterParts): Promise<HeldCheckpoint> {
    const { vm, memserver, place, frozen } = parts;
    const { ram } = frozen;
    const { diskBytes } = vm;
    const diskPath = frozen.disk ? place.diskPath : undefined;
    const { id } = request;
    const saved = await memserver.save({
      id,
      ramPath: place.ramPath,
      ...(diskPath === undefined ? {} : { diskPath }),
    });
    const { host, accel, checkpoints } = this.#context;
    return checkpoints.finish(
      place,
      {
        ...{ format: 'snowflock-checkpoint', version: CHECKPOINT_VERSION, ...request, host, accel },
        ...{
          createdAtMs: Date.now(),
          shape: vm.shape,
          forkId: frozen.forkId,
          ramBytes: ram.length,
          diskBytes,
        },
        ...{ presentPages: saved.ram.dataPages, prefetch: vm.wakeUpPages },
        files: { ram: { bytes: saved.ram.bytes }, disk: saved.disk && { bytes: saved.disk.bytes } },
      },
      frozen.deviceState,
    );
  }
}

interface UnderWay {
  /** The ticket that its VM was cloned with: it is read through that one's memtap. Null: it was not cloned. */
  readonly upstream: string | null;
  readonly resources: AsyncDisposableStack;
}

interface WriterParts {
  readonly vm: VmForks;
  readonly memserver: MemserverProcess;
  readonly place: NewCheckpoint;
  readonly frozen: FrozenForCheckpoint;
}

const REASON_MAX = 4000;

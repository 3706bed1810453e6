// The checkpoints on this host's disk: one directory each (docs/checkpoint-format.md), whole or not there.
//
//   STATE_DIR/checkpoints/.new-ID ──written, synced──▶ renamed to NAME ──deleted──▶ renamed to .gone-ID ──▶ removed
//
// Invariant: whatever has a name was written to its end. What begins with a dot is swept when sfld starts.

import { createHash } from 'node:crypto';
import { mkdir, open, readdir, readFile, rename, rm, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { constants, zstdCompressSync, zstdDecompressSync } from 'node:zlib';
import {
  CheckpointManifest,
  CHECKPOINTS_PER_HOST_MAX,
  SnowflockError,
  type HeldCheckpoint,
} from '@snowflock/protocol';
import type { CheckpointFiles } from '@snowflock/replication';
import type { Log } from '../log.ts';

const PAGE_BYTES = 4096;
const FILES = { manifest: 'manifest.json', device: 'device.zst', ram: 'ram.pages', disk: 'disk.pages' };
/** Caps on what is read whole, against a damaged file. */
const MANIFEST_MAX_BYTES = 1 << 20;
const DEVICE_MAX_BYTES = 16 << 20;

const NO_NEEDS = Buffer.alloc(0);

export interface StoredCheckpoint {
  readonly manifest: CheckpointManifest;
  readonly directory: string;
  /** What VMs that were started from it needed first, in that order. */
  wakeUpPages: readonly number[];
  /** All that those of the last start needed, as memservers tell it. */
  needs: Buffer;
}

/** One that is being written. */
export interface NewCheckpoint {
  readonly directory: string;
  readonly ramPath: string;
  readonly diskPath: string;
}

export class CheckpointStore {
  readonly #directory: string;
  readonly #log: Log;
  readonly #stored = new Map<string, StoredCheckpoint>();

  private constructor(directory: string, log: Log) {
    this.#directory = directory;
    this.#log = log;
  }

  /** Removes what was not finished, and reads what there is. What cannot be read stays on the disk, and is not offered. */
  static async open(options: { readonly stateDir: string; readonly log: Log }): Promise<CheckpointStore> {
    const store = new CheckpointStore(join(options.stateDir, 'checkpoints'), options.log);
    for (const name of await namesIn(store.#directory)) {
      const directory = join(store.#directory, name);
      if (name.startsWith('.')) await rm(directory, { recursive: true, force: true });
      else await store.#read(name, directory);
    }
    return store;
  }

  get held(): HeldCheckpoint[] {
    return [...this.#stored.values()].map(({ manifest }) => heldOf(manifest));
  }

  /** Throws 'no-such-checkpoint'. */
  find(name: string, id: string): StoredCheckpoint {
    const found = this.#stored.get(name);
    if (found?.manifest.id === id) return found;
    throw new SnowflockError('no-such-checkpoint', `checkpoint '${name}' is not on the disk of this host`);
  }

  /** A place to write one to; `finish` or `abandon` it. */
  async begin({ name, id }: { readonly name: string; readonly id: string }): Promise<NewCheckpoint> {
    if (this.#stored.has(name) || (await exists(join(this.#directory, name))))
      throw new SnowflockError(
        'checkpoint-exists',
        `there is a directory ${join(this.#directory, name)} on this host already; choose another name`,
      );
    if (this.#stored.size >= CHECKPOINTS_PER_HOST_MAX)
      throw new SnowflockError(
        'no-resources',
        `this host holds ${CHECKPOINTS_PER_HOST_MAX} checkpoints, as many as it may; delete some`,
      );
    const directory = join(this.#directory, `.new-${id}`);
    await mkdir(directory, { recursive: true, mode: 0o700 }).catch(cannotWrite(directory));
    return { directory, ramPath: join(directory, FILES.ram), diskPath: join(directory, FILES.disk) };
  }

  /** Writes what is missing, and gives it its name. */
  async finish(
    { directory }: NewCheckpoint,
    manifest: Omit<CheckpointManifest, 'files'> & {
      readonly files: Pick<CheckpointManifest['files'], 'ram' | 'disk'>;
    },
    deviceState: Buffer,
  ): Promise<HeldCheckpoint> {
    const packed = zstdCompressSync(deviceState, { params: { [constants.ZSTD_c_checksumFlag]: 1 } });
    const device = { bytes: packed.length, sha256: sha256Of(packed) };
    const whole = CheckpointManifest.parse({ ...manifest, files: { ...manifest.files, device } });
    await writeSynced(join(directory, FILES.device), packed);
    await writeSynced(join(directory, FILES.manifest), `${JSON.stringify(whole, null, 2)}\n`);
    await sync(directory);
    const named = join(this.#directory, manifest.name);
    await rename(directory, named).catch(cannotWrite(named));
    await sync(this.#directory);
    this.#stored.set(manifest.name, {
      manifest: whole,
      directory: named,
      wakeUpPages: whole.prefetch,
      needs: NO_NEEDS,
    });
    return heldOf(whole);
  }

  async abandon({ directory }: NewCheckpoint): Promise<void> {
    await rm(directory, { recursive: true, force: true });
  }

  /** Idempotent. Whoever reads its files goes on. */
  async remove(name: string, id: string): Promise<void> {
    const found = this.#stored.get(name);
    if (found?.manifest.id !== id) return;
    const gone = join(this.#directory, `.gone-${id}`);
    await rename(found.directory, gone).catch((error: NodeJS.ErrnoException) => {
      if (error.code !== 'ENOENT') throw error; // somebody has removed it by hand
    });
    this.#stored.delete(name);
    await rm(gone, { recursive: true, force: true });
  }

  async #read(name: string, directory: string): Promise<void> {
    try {
      const text = await readCapped(join(directory, FILES.manifest), MANIFEST_MAX_BYTES);
      const manifest = parseManifest(text.toString('utf8'));
      if (manifest.name !== name) throw new Error(`its manifest is of checkpoint '${manifest.name}'`);
      this.#stored.set(name, { manifest, directory, wakeUpPages: manifest.prefetch, needs: NO_NEEDS });
    } catch (error) {
      this.#log.error({ err: error, directory }, 'a checkpoint cannot be used; remove it by hand');
    }
  }
}

/** Throws on what is not a manifest of a version that is known here. */
export function parseManifest(text: string): CheckpointManifest {
  return CheckpointManifest.parse(JSON.parse(text));
}

/** Throws 'source-lost' when it is not what was written. */
export async function readDeviceState({ manifest, directory }: StoredCheckpoint): Promise<Buffer> {
  const path = join(directory, FILES.device);
  const { bytes, sha256 } = manifest.files.device;
  try {
    const packed = await readCapped(path, DEVICE_MAX_BYTES);
    if (packed.length !== bytes || sha256Of(packed) !== sha256) throw new Error('it is not what was written');
    return zstdDecompressSync(packed, { maxOutputLength: DEVICE_MAX_BYTES });
  } catch (cause) {
    const why = (cause as Error).message;
    throw new SnowflockError('source-lost', `checkpoint file ${path} cannot be used: ${why}`, { cause });
  }
}

export function pageFilesOf({ manifest, directory }: StoredCheckpoint): CheckpointFiles {
  const { id, ramBytes, diskBytes } = manifest;
  const disk = { path: join(directory, FILES.disk), pageCount: Math.ceil(diskBytes / PAGE_BYTES) };
  return {
    id,
    ram: { path: join(directory, FILES.ram), pageCount: ramBytes / PAGE_BYTES },
    ...(diskBytes > 0 ? { disk } : {}),
  };
}

function heldOf(manifest: CheckpointManifest): HeldCheckpoint {
  const { id, name, description, createdAtMs, vm, shape, accel, diskBytes, presentPages, files } = manifest;
  const sizeBytes = files.device.bytes + files.ram.bytes + (files.disk?.bytes ?? 0);
  return { id, name, description, createdAtMs, vm, shape, accel, diskBytes, presentPages, sizeBytes };
}

function sha256Of(bytes: Buffer): string {
  return createHash('sha256').update(bytes).digest('hex');
}

async function namesIn(directory: string): Promise<string[]> {
  try {
    return await readdir(directory);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return [];
    throw error;
  }
}

async function exists(path: string): Promise<boolean> {
  return (await stat(path).catch(() => null)) !== null;
}

async function readCapped(path: string, maxBytes: number): Promise<Buffer> {
  const { size } = await stat(path);
  if (size > maxBytes) throw new Error(`it has ${size} bytes, at most ${maxBytes} expected`);
  return readFile(path);
}

async function writeSynced(path: string, data: Buffer | string): Promise<void> {
  await writeFile(path, data, { mode: 0o600, flush: true }).catch(cannotWrite(path));
}

/** Of a directory: what is in it, and by which names. */
async function sync(directory: string): Promise<void> {
  const handle = await open(directory, 'r');
  try {
    await handle.sync();
  } finally {
    await handle.close();
  }
}

function cannotWrite(path: string): (error: unknown) => never {
  return (cause) => {
    const { code, message } = cause as NodeJS.ErrnoException;
    if (code === 'ENOSPC' || code === 'EDQUOT')
      throw new SnowflockError('no-resources', `the disk of ${path} is full; make room and try again`, {
        cause,
      });
    throw new SnowflockError('unavailable', `${path} cannot be written: ${message}`, { cause });
  };
}

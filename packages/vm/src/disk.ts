// qcow2 overlays, made by qemu-img.

import { execFile } from 'node:child_process';
import { closeSync, openSync, readSync } from 'node:fs';
import { stat } from 'node:fs/promises';
import { promisify } from 'node:util';
import { SnowflockError } from '@snowflock/protocol';
import { z } from 'zod';

const run = promisify(execFile);
const QEMU_IMG_TIMEOUT_MS = 20_000;
const QCOW2_MAGIC = 0x514649fb;

async function qemuImg(args: string[]): Promise<string> {
  try {
    const { stdout } = await run('qemu-img', args, { timeout: QEMU_IMG_TIMEOUT_MS });
    return stdout;
  } catch (error) {
    const said = error instanceof Error && 'stderr' in error ? String(error.stderr).trim() : String(error);
    throw new SnowflockError('unavailable', `qemu-img ${args.join(' ')} failed: ${said}`, { cause: error });
  }
}

export async function createOverlay(options: {
  path: string;
  backing: string;
  backingFormat: 'raw' | 'qcow2';
  /** Given, the backing file need not be readable yet. */
  sizeBytes?: number;
}): Promise<void> {
  const size = options.sizeBytes === undefined ? [] : [String(options.sizeBytes)];
  const unchecked = options.sizeBytes === undefined ? [] : ['-u'];
  await qemuImg([
    'create',
    '-q',
    ...unchecked,
    '-f',
    'qcow2',
    '-b',
    options.backing,
    '-F',
    options.backingFormat,
    options.path,
    ...size,
  ]);
}

export interface DiskInfo {
  readonly format: 'raw' | 'qcow2';
  /** As the guest sees it. */
  readonly sizeBytes: number;
}

/** Format by magic, never by QEMU's probing: a raw disk's content is the guest's, and may pretend to be another format. */
export async function diskInfo(path: string): Promise<DiskInfo> {
  const head = Buffer.alloc(4);
  let format: 'raw' | 'qcow2';
  try {
    const fd = openSync(path, 'r');
    try {
      format = readSync(fd, head, 0, 4, 0) === 4 && head.readUInt32BE(0) === QCOW2_MAGIC ? 'qcow2' : 'raw';
    } finally {
      closeSync(fd);
    }
    if (format === 'raw') return { format, sizeBytes: (await stat(path)).size };
  } catch (error) {
    throw new SnowflockError('no-such-image', `disk image ${path} cannot be read: ${String(error)}`, {
      cause: error,
    });
  }
  const info: unknown = JSON.parse(await qemuImg(['info', '-U', '--output=json', '-f', format, path]));
  return { format, sizeBytes: z.object({ 'virtual-size': z.number() }).parse(info)['virtual-size'] };
}

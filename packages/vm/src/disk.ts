// qcow2 overlays, made by qemu-img.

import { execFile } from 'node:child_process';
import { open, stat } from 'node:fs/promises';
import { promisify } from 'node:util';
import { SnowflockError } from '@snowflock/protocol';
import { z } from 'zod';

const run = promisify(execFile);
const QEMU_IMG_TIMEOUT_MS = 20_000;
const QCOW2_MAGIC = 0x514649fb;
const SECTOR_BYTES = 512;

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
  const refuse = (why: string, cause?: unknown): never => {
    throw new SnowflockError('no-such-image', `disk image ${path} ${why}`, { cause });
  };
  const unreadable = (error: Error): never => refuse(`cannot be read: ${error.message}`, error);
  // Looked at before it is opened: opening a pipe would wait for its writer.
  const found = await stat(path).catch(unreadable);
  if (!found.isFile()) return refuse('is not a file');
  if (!(await isQcow2(path).catch(unreadable))) {
    const sizeBytes = found.size;
    if (sizeBytes === 0 || sizeBytes % SECTOR_BYTES !== 0)
      return refuse(`is no disk: ${sizeBytes} bytes, not whole sectors of ${SECTOR_BYTES}`);
    return { format: 'raw', sizeBytes };
  }
  const info: unknown = JSON.parse(await qemuImg(['info', '-U', '--output=json', '-f', 'qcow2', path]));
  return { format: 'qcow2', sizeBytes: z.object({ 'virtual-size': z.number() }).parse(info)['virtual-size'] };
}

async function isQcow2(path: string): Promise<boolean> {
  const file = await open(path);
  try {
    const head = Buffer.alloc(4);
    const { bytesRead } = await file.read(head, 0, head.length, 0);
    return bytesRead === head.length && head.readUInt32BE(0) === QCOW2_MAGIC;
  } finally {
    await file.close();
  }
}

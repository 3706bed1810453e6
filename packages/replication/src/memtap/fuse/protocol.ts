// The FUSE kernel protocol, the subset that a mount of one or two read-only files needs. Little-endian (x86-64, arm64).
// Source of every number: include/uapi/linux/fuse.h, protocol 7.38.
//
// Request: 40 bytes of header (u32 length, u32 opcode, u64 unique, u64 node, u32 uid, gid, pid, ...), then the body.
// Reply: 16 bytes (u32 length, i32 -errno, u64 unique), then the body. A notification is a reply with unique 0 and its
// code in the error field.

export const FuseOp = {
  lookup: 1,
  forget: 2,
  getattr: 3,
  setattr: 4,
  open: 14,
  read: 15,
  write: 16,
  statfs: 17,
  release: 18,
  fsync: 20,
  flush: 25,
  init: 26,
  opendir: 27,
  readdir: 28,
  releasedir: 29,
  access: 34,
  interrupt: 36,
  destroy: 38,
  batchForget: 42,
} as const;

export const Errno = { EPERM: 1, ENOENT: 2, EINTR: 4, EIO: 5, EROFS: 30, ENOSYS: 38 } as const;

export const FUSE_IN_HEADER = 40;
export const FUSE_OUT_HEADER = 16;
/** The kernel refuses to read requests into less: FUSE_MIN_READ_BUFFER, plus room for one write of maxWrite. */
export const FUSE_REQUEST_BYTES = 8192 + 4096;
export const NOTIFY_STORE = 4;
/** out header, then u64 node, u64 offset, u32 size, u32 padding. */
export const STORE_HEADER = FUSE_OUT_HEADER + 24;

/** Largest READ we ask the kernel for, in pages (1 MiB), which is also the largest request on the wire. */
export const FUSE_MAX_PAGES = 256;
export const FUSE_MAX_READ_BYTES = FUSE_MAX_PAGES * 4096;

/** The kernel's own read-ahead: none. The memtap decides itself what more to fetch. */
const KERNEL_READ_AHEAD_BYTES = 4096;

const FUSE_ASYNC_READ = 1 << 0;
const FUSE_PARALLEL_DIROPS = 1 << 18;
const FUSE_MAX_PAGES_FLAG = 1 << 22;
const INIT_FLAGS = FUSE_ASYNC_READ | FUSE_PARALLEL_DIROPS | FUSE_MAX_PAGES_FLAG;
const PROTOCOL_MINOR = 38;
/** Read-ahead requests in flight; single-page faults are not counted against it. */
const MAX_BACKGROUND = 64;
const FOPEN_KEEP_CACHE = 1 << 1;
/** Names and attributes never change: one hour of caching, in seconds. */
const VALID_SECONDS = 3600;

export const ROOT_NODE = 1;
/** Node numbers of the files: region + FILE_NODE_BASE. */
export const FILE_NODE_BASE = 2;

export interface FuseFile {
  readonly name: string;
  readonly node: number;
  readonly sizeBytes: number;
}

export function writeOutHeader(out: Buffer, lengthBytes: number, error: number): void {
  out.writeUInt32LE(lengthBytes, 0);
  out.writeInt32LE(error, 4);
}

/** Builds the answer to everything but READ, INTERRUPT and what has no answer. Returns its length in `out`. */
export function answerMetadata(request: Buffer, out: Buffer, files: readonly FuseFile[]): number {
  request.copy(out, 8, 8, 16);
  out.fill(0, FUSE_OUT_HEADER, FUSE_OUT_HEADER + 128);
  const op = request.readUInt32LE(4);
  const node = request.readUInt32LE(16);
  const body = metadataBody({ op, node, request, out, files });
  if (body < 0) {
    writeOutHeader(out, FUSE_OUT_HEADER, body);
    return FUSE_OUT_HEADER;
  }
  writeOutHeader(out, FUSE_OUT_HEADER + body, 0);
  return FUSE_OUT_HEADER + body;
}

interface MetadataRequest {
  readonly op: number;
  readonly node: number;
  readonly request: Buffer;
  readonly out: Buffer;
  readonly files: readonly FuseFile[];
}

/** Fills the body behind the out header. Returns its length, or -errno. */
function metadataBody({ op, node, request, out, files }: MetadataRequest): number {
  const at = FUSE_OUT_HEADER;
  switch (op) {
    case FuseOp.init:
      return fillInit(request, out);
    case FuseOp.lookup: {
      const name = request.toString('utf8', FUSE_IN_HEADER, request.readUInt32LE(0) - 1);
      const file = node === ROOT_NODE ? files.find((candidate) => candidate.name === name) : undefined;
      if (file === undefined) return -Errno.ENOENT;
      out.writeUInt32LE(file.node, at);
      out.writeUInt32LE(VALID_SECONDS, at + 16);
      out.writeUInt32LE(VALID_SECONDS, at + 24);
      fillAttributes(out, at + 40, { node: file.node, sizeBytes: file.sizeBytes, mode: 0o100600 });
      return 128;
    }
    case FuseOp.getattr: {
      const file = files.find((candidate) => candidate.node === node);
      out.writeUInt32LE(VALID_SECONDS, at);
      const sizeBytes = file?.sizeBytes ?? 4096;
      fillAttributes(out, at + 16, { node, sizeBytes, mode: file === undefined ? 0o40700 : 0o100600 });
      return 104;
    }
    case FuseOp.open:
      out.writeUInt32LE(FOPEN_KEEP_CACHE, at + 8);
      return 16;
    case FuseOp.opendir:
      return 16;
    case FuseOp.statfs:
      out.writeUInt32LE(4096, at + 40);
      out.writeUInt32LE(255, at + 44);
      out.writeUInt32LE(4096, at + 48);
      return 80;
    case FuseOp.readdir:
    case FuseOp.releasedir:
    case FuseOp.release:
    case FuseOp.flush:
    case FuseOp.fsync:
    case FuseOp.access:
    case FuseOp.destroy:
      return 0;
    case FuseOp.write:
    case FuseOp.setattr:
      return -Errno.EROFS;
    default:
      return -Errno.ENOSYS;
  }
}

function fillInit(request: Buffer, out: Buffer): number {
  const at = FUSE_OUT_HEADER;
  const offered = request.readUInt32LE(FUSE_IN_HEADER + 12);
  out.writeUInt32LE(7, at);
  out.writeUInt32LE(Math.min(request.readUInt32LE(FUSE_IN_HEADER + 4), PROTOCOL_MINOR), at + 4);
  out.writeUInt32LE(Math.min(request.readUInt32LE(FUSE_IN_HEADER + 8), KERNEL_READ_AHEAD_BYTES), at + 8);
  out.writeUInt32LE((INIT_FLAGS & offered) >>> 0, at + 12);
  out.writeUInt16LE(MAX_BACKGROUND, at + 16);
  out.writeUInt16LE((MAX_BACKGROUND * 3) / 4, at + 18);
  out.writeUInt32LE(4096, at + 20);
  out.writeUInt32LE(1, at + 24);
  out.writeUInt16LE(FUSE_MAX_PAGES, at + 28);
  return 64;
}

function fillAttributes(
  out: Buffer,
  at: number,
  file: { node: number; sizeBytes: number; mode: number },
): void {
  out.writeUInt32LE(file.node, at);
  out.writeBigUInt64LE(BigInt(file.sizeBytes), at + 8);
  out.writeBigUInt64LE(BigInt(Math.ceil(file.sizeBytes / 512)), at + 16);
  out.writeUInt32LE(file.mode, at + 60);
  out.writeUInt32LE(1, at + 64);
  out.writeUInt32LE(4096, at + 80);
}

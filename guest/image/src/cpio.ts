// Writes the "newc" archives that Linux unpacks as initramfs (kernel: Documentation/driver-api/early-userspace/buffer-format.rst).
// Written here rather than by cpio(1) because device nodes then need no mknod, and equal trees give equal bytes.

export interface CpioEntry {
  /** Without a leading slash. */
  readonly path: string;
  /** Type and permission bits, as in st_mode. */
  readonly mode: number;
  readonly data?: Buffer;
  /** Device number of a node. */
  readonly device?: { readonly major: number; readonly minor: number };
}

export const MODE_DIRECTORY = 0o040000;
export const MODE_FILE = 0o100000;
export const MODE_SYMLINK = 0o120000;
export const MODE_CHARACTER = 0o020000;

const hex = (value: number): string => value.toString(16).padStart(8, '0').toUpperCase();
const padding = (length: number): Buffer => Buffer.alloc((4 - (length % 4)) % 4);

function encodeEntry(entry: CpioEntry, inode: number): Buffer {
  const data = entry.data ?? Buffer.alloc(0);
  const name = Buffer.from(`${entry.path}\0`);
  const fields = [
    inode,
    entry.mode,
    0, // uid
    0, // gid
    1, // links
    0, // mtime
    data.length,
    0, // device the file lies on
    0,
    entry.device?.major ?? 0,
    entry.device?.minor ?? 0,
    name.length,
    0, // checksum, unused
  ];
  const header = Buffer.from('070701' + fields.map(hex).join(''));
  return Buffer.concat([header, name, padding(header.length + name.length), data, padding(data.length)]);
}

/** Parents must come before their children. */
export function encodeCpio(entries: readonly CpioEntry[]): Buffer {
  return Buffer.concat([
    ...entries.map((entry, index) => encodeEntry(entry, index + 1)),
    encodeEntry({ path: 'TRAILER!!!', mode: 0 }, 0),
  ]);
}

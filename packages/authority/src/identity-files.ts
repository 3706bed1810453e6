// Certificates and keys on disk: written whole or not at all, keys readable by their owner only.

import { randomBytes } from 'node:crypto';
import { existsSync } from 'node:fs';
import { mkdir, open, readFile, rename, rm } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { OLD_KEY_SUFFIX } from '@snowflock/protocol';

/** Replaces a file at once: after a crash it is the old one or the new one. */
export async function writeWhole(path: string, text: string, mode: number): Promise<void> {
  const dir = dirname(path);
  await mkdir(dir, { recursive: true, mode: 0o700 });
  const draft = join(dir, `.${basename(path)}.${randomBytes(6).toString('hex')}`);
  try {
    const file = await open(draft, 'wx', mode);
    try {
      await file.writeFile(text);
      await file.sync();
    } finally {
      await file.close();
    }
    await rename(draft, path);
  } finally {
    await rm(draft, { force: true });
  }
  const folder = await open(dir, 'r');
  try {
    await folder.sync();
  } finally {
    await folder.close();
  }
}

export interface IdentityFiles {
  readonly ca: string;
  readonly cert: string;
  readonly key: string;
}

/** DIR/ca.crt, DIR/NAME.crt, DIR/NAME.key */
export function identityFiles(dir: string, name: string): IdentityFiles {
  return { ca: join(dir, 'ca.crt'), cert: join(dir, `${name}.crt`), key: join(dir, `${name}.key`) };
}

/** A certificate that is there has its key at every moment: the new one, or the last one beside it (readTlsIdentity). */
export async function writeIdentity(
  files: IdentityFiles,
  identity: { readonly ca: string; readonly cert: string; readonly key: string },
): Promise<void> {
  const oldKey = `${files.key}${OLD_KEY_SUFFIX}`;
  if (existsSync(files.key)) await writeWhole(oldKey, await readFile(files.key, 'utf8'), 0o600);
  await writeWhole(files.key, identity.key, 0o600);
  await writeWhole(files.ca, identity.ca, 0o644);
  await writeWhole(files.cert, identity.cert, 0o644);
  await rm(oldKey, { force: true });
}

// The revoked certificates as sfmd told them last, kept on disk: a host that starts while sfmd is away refuses them too.

import { existsSync, readFileSync } from 'node:fs';
import { z } from 'zod';
import { writeWhole } from '@snowflock/authority';
import { SnowflockError } from '@snowflock/protocol';
import { RevokedCertificates } from '../revoked-certificates.ts';

const Serials = z.array(z.string().max(64));

export class RevokedFile {
  readonly certificates: RevokedCertificates;
  readonly #path: string;

  constructor(path: string) {
    this.#path = path;
    this.certificates = new RevokedCertificates(existsSync(path) ? read(path) : []);
  }

  /** In force at once, then on disk. */
  async replace(serials: readonly string[]): Promise<void> {
    if (this.certificates.replace(serials))
      await writeWhole(this.#path, `${JSON.stringify(serials)}\n`, 0o600);
  }
}

function read(path: string): string[] {
  try {
    return Serials.parse(JSON.parse(readFileSync(path, 'utf8')));
  } catch (error) {
    throw new SnowflockError(
      'bad-config',
      `cannot read the revoked certificates in ${path}: remove it, then sfmd tells them again`,
      { cause: error },
    );
  }
}

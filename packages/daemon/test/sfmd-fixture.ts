// A throw-away cluster CA and certificates for tests, made with the openssl command.

import { execFileSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { TlsIdentity } from '@snowflock/protocol';

export interface TestCa extends Disposable {
  readonly dir: string;
  /** Certificate for these names and addresses; the first is its name. The role is host, of 'master' it is master. */
  issue(...names: string[]): TlsIdentity;
  issueAs(role: string, ...names: string[]): TlsIdentity;
}

const P256 = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes'];

export function createTestCa(): TestCa {
  const dir = mkdtempSync(join(tmpdir(), 'snowflock-ca-'));
  const openssl = (...args: string[]): void =>
    void execFileSync('openssl', args, { cwd: dir, stdio: 'pipe', timeout: 20_000 });
  openssl(
    'req',
    '-x509',
    ...P256,
    '-days',
    '2',
    '-subj',
    '/CN=test cluster',
    '-keyout',
    'ca.key',
    '-out',
    'ca.crt',
  );
  return {
    dir,
    issue: (...names) => issueAs(names[0] === 'master' ? 'master' : 'host', ...names),
    issueAs,
    [Symbol.dispose]() {
      rmSync(dir, { recursive: true, force: true });
    },
  };

  function issueAs(role: string, ...names: string[]): TlsIdentity {
    const name = names[0] ?? 'nobody';
    const san = names.map((each) => (/^[\d.]+$|:/.test(each) ? `IP:${each}` : `DNS:${each}`)).join(',');
    writeFileSync(join(dir, `${name}.ext`), `subjectAltName=${san}\n`);
    openssl(
      'req',
      ...P256,
      '-subj',
      `/O=SnowFlock/OU=${role}/CN=${name}`,
      '-keyout',
      `${name}.key`,
      '-out',
      `${name}.csr`,
    );
    openssl(
      ...['x509', '-req', '-in', `${name}.csr`, '-CA', 'ca.crt', '-CAkey', 'ca.key', '-CAcreateserial'],
      ...['-days', '2', '-extfile', `${name}.ext`, '-out', `${name}.crt`],
    );
    const read = (file: string): Buffer => readFileSync(join(dir, file));
    return { ca: read('ca.crt'), cert: read(`${name}.crt`), key: read(`${name}.key`) };
  }
}

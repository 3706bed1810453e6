// The new host's side of enrolment, and renewal: its key is made here and never leaves.
//
//   token ─▶ connect, take the authority's certificate whose fingerprint the token names ─▶ hang up
//         ─▶ connect again, now verified by that authority ─▶ send secret, host, request ─▶ certificate, checked ─▶ files

import { X509Certificate, createPrivateKey } from 'node:crypto';
import { once } from 'node:events';
import * as tls from 'node:tls';
import { CertificateReply, ControlClient, readTlsIdentity, SnowflockError } from '@snowflock/protocol';
import { writeIdentity, type IdentityFiles } from './identity-files.ts';
import { fingerprint, newKey, newRequest } from './openssl.ts';
import { parseToken } from './token.ts';

const CONNECT_TIMEOUT_MS = 10_000;
const SIGN_TIMEOUT_MS = 30_000;
/** The master's certificate, its authority, and room. */
const CHAIN_MAX = 4;

export interface MasterAddress {
  /** Name or address of the master host; its certificate must be for it. */
  readonly address: string;
  readonly port: number;
}

/** Gets this host its certificate and writes it with the key made here. Answers the new certificate. */
export async function enroll(options: {
  readonly token: string;
  readonly master: MasterAddress;
  readonly host: string;
  readonly files: IdentityFiles;
}): Promise<X509Certificate> {
  const { master, host, files } = options;
  const { fingerprint: wanted, secret } = parseToken(options.token);
  const ca = await fetchAuthority(master, wanted);
  const key = newKey();
  using client = new ControlClient({ ...master, tls: { ca: Buffer.from(ca) }, host: master.address });
  const reply = await client.request({
    method: 'POST',
    path: '/v1/enroll',
    body: { secret, host, csr: await newRequest(key) },
    reply: CertificateReply,
    timeoutMs: SIGN_TIMEOUT_MS,
  });
  const certificate = checkIssued({ cert: reply.cert, ca, key });
  await writeIdentity(files, { ca, cert: reply.cert, key });
  return certificate;
}

/** A new key and certificate for who has a valid one: the same name and role. */
export async function renew(options: {
  readonly master: MasterAddress;
  readonly files: IdentityFiles;
  readonly signal?: AbortSignal;
}): Promise<X509Certificate> {
  const { master, files, signal } = options;
  const identity = readTlsIdentity({ tlsCa: files.ca, tlsCert: files.cert, tlsKey: files.key });
  const key = newKey();
  using client = new ControlClient({ ...master, tls: identity, host: master.address });
  const reply = await client.request({
    method: 'POST',
    path: '/v1/certificates/renew',
    body: { csr: await newRequest(key) },
    reply: CertificateReply,
    timeoutMs: SIGN_TIMEOUT_MS,
    ...(signal ? { signal } : {}),
  });
  const ca = identity.ca.toString();
  const certificate = checkIssued({ cert: reply.cert, ca, key });
  await writeIdentity(files, { ca, cert: reply.cert, key });
  return certificate;
}

function checkIssued({ cert, ca, key }: { cert: string; ca: string; key: string }): X509Certificate {
  const certificate = new X509Certificate(cert);
  if (
    !certificate.verify(new X509Certificate(ca).publicKey) ||
    !certificate.checkPrivateKey(createPrivateKey(key))
  )
    throw new SnowflockError('unauthorized', 'the certificate that came back is not for the key made here');
  return certificate;
}

/** The certificate in the server's chain that has this fingerprint. Nothing is sent. */
async function fetchAuthority({ address, port }: MasterAddress, wanted: Buffer): Promise<string> {
  const where = `${address}:${port}`;
  // Whoever answers is not believed, only looked at: the fingerprint decides.
  const socket = tls.connect({ host: address, port, rejectUnauthorized: false, minVersion: 'TLSv1.3' });
  try {
    await once(socket, 'secureConnect', { signal: AbortSignal.timeout(CONNECT_TIMEOUT_MS) });
    let certificate = socket.getPeerX509Certificate();
    for (let depth = 0; certificate && depth < CHAIN_MAX; depth++) {
      const pem = certificate.toString();
      if (certificate.ca && fingerprint(pem).equals(wanted)) return pem;
      certificate = certificate.issuerCertificate;
    }
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException;
    const why = code === 'ABORT_ERR' ? `no answer in ${CONNECT_TIMEOUT_MS} ms` : message;
    throw new SnowflockError(
      'host-down',
      `cannot reach the master for enrolment at ${where}: ${why}; it listens there only while a token is open`,
      { cause: error },
    );
  } finally {
    socket.destroy();
  }
  throw new SnowflockError(
    'unauthorized',
    `${where} is not the master that issued this token: it has another certificate authority; nothing was sent to it`,
  );
}

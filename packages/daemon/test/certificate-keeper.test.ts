// A daemon's certificate grows old by an injected clock; authority, files and connections are real.

import { X509Certificate } from 'node:crypto';
import { once } from 'node:events';
import { existsSync, mkdtempSync, readFileSync, renameSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { connect, type TLSSocket } from 'node:tls';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import {
  Authority,
  identityFiles,
  renewalRetryMs,
  renewalWindow,
  writeIdentity,
  type IdentityFiles,
} from '@snowflock/authority';
import { ControlClient, NoReply, readTlsIdentity, ROLES, type TlsIdentity } from '@snowflock/protocol';
import { CertificateKeeper, type KeeperClock } from '../src/certificate-keeper.ts';
import { createControlServer } from '../src/http.ts';
import { createLog, silentLog } from '../src/log.ts';
import { serialOf } from '../src/peer.ts';

const DAY_MS = 24 * 3600 * 1000;
const LOOK_MS = 60_000;
const SUBJECT = { role: 'host', name: 'h1', altNames: ['h1', '127.0.0.1'] } as const;

let dir: string;
let authority: Authority;
let files: IdentityFiles;
const paths = () => ({ tlsCa: files.ca, tlsCert: files.cert, tlsKey: files.key });
const serial = (identity: TlsIdentity): string => new X509Certificate(identity.cert).serialNumber;
const replaceFiles = async (days = 365): Promise<void> =>
  writeIdentity(files, await authority.newIdentity(SUBJECT, days));

beforeEach(async () => {
  dir = mkdtempSync(join(tmpdir(), 'snowflock-keeper-'));
  authority = await Authority.create(join(dir, 'a'), { name: 'test' });
  files = identityFiles(join(dir, 'tls'), 'host');
  await replaceFiles();
});
afterEach(() => rmSync(dir, { recursive: true }));

/** A keeper whose sleeps end when the test says so; the time is what the test says, too. */
function keeping(renew: () => Promise<unknown>, onChange: (identity: TlsIdentity) => void = () => undefined) {
  const identity = readTlsIdentity(paths());
  const stop = new AbortController();
  const lines: { level: string; msg: string }[] = [];
  const sleeps: { ms: number; wake: () => void }[] = [];
  const time = { nowMs: Date.now() };
  const clock: KeeperClock = {
    nowMs: () => time.nowMs,
    random: () => 0.5,
    sleep: (ms, signal) =>
      new Promise((resolve, reject) => {
        signal.addEventListener('abort', () => reject(new Error('stopped')), { once: true });
        sleeps.push({ ms, wake: () => resolve(undefined) });
      }),
  };
  const log = createLog({
    name: 'sfld',
    level: 'info',
    write: (line) => lines.push(JSON.parse(line) as { level: string; msg: string }),
  });
  const expiry: number[] = [];
  const onExpiry = (atMs: number): unknown => expiry.push(atMs);
  const keeper = new CertificateKeeper({ paths: paths(), identity, renew, onChange, onExpiry, log, clock });
  const running = keeper.run(stop.signal);
  return {
    ...{ expiry, lines },
    /** How long it wants to sleep now; answered when it sleeps again. */
    async slept(): Promise<number> {
      await expect.poll(() => sleeps.length).toBe(1);
      return sleeps[0]?.ms ?? Number.NaN;
    },
    async after(ms: number): Promise<number> {
      await this.slept();
      time.nowMs += ms;
      sleeps.shift()?.wake();
      return this.slept();
    },
    async [Symbol.asyncDispose]() {
      stop.abort();
      await running;
    },
  };
}

describe('when to renew', () => {
  const between = (from: number, to: number) =>
    renewalWindow({ validFrom: new Date(from).toUTCString(), validTo: new Date(to).toUTCString() });

  it('is after two thirds of its life, without the day that it is dated back', () => {
    const year = between(0, 361 * DAY_MS);
    expect(year.fromMs).toBe(241 * DAY_MS);
    expect(year.untilMs).toBe(271 * DAY_MS);
    const brief = between(0, 36_000);
    expect([brief.fromMs, brief.untilMs]).toEqual([24_000, 27_000]);
  });

  it('is again within a day, and ever sooner; not in a flood', () => {
    expect(renewalRetryMs({ leftMs: 100 * DAY_MS, random: 1 })).toBe(DAY_MS);
    expect(renewalRetryMs({ leftMs: 100 * DAY_MS, random: 0 })).toBe(DAY_MS / 2);
    expect(renewalRetryMs({ leftMs: DAY_MS, random: 1 })).toBe(DAY_MS / 10);
    expect(renewalRetryMs({ leftMs: 5, random: 0 })).toBe(1000);
    expect(renewalRetryMs({ leftMs: -1, random: 0 })).toBe(600_000);
  });
});

describe('the keeper of a certificate', () => {
  it('renews in time, and new connections have the new one while old ones go on', async () => {
    const seen: (string | null)[] = [];
    const hold = Promise.withResolvers<void>();
    let held = false;
    await using server = await createControlServer({
      name: 'testd',
      log: silentLog(),
      register(app) {
        const config = { roles: ROLES };
        app.get('/v1/who', { config }, (request, reply) => {
          seen.push(serialOf(request.raw.socket as TLSSocket));
          return reply.code(204).send();
        });
        app.get('/v1/hold', { config }, async (_request, reply) => {
          held = true;
          await hold.promise;
          return reply.code(204).send();
        });
      },
    });
    const first = readTlsIdentity(paths());
    const { port } = await server.listenTls({ address: '127.0.0.1', port: 0, tls: first });
    using client = new ControlClient({ address: '127.0.0.1', port, tls: first, host: 'h1' });
    const get = (path: string): Promise<undefined> =>
      client.request({ method: 'GET', path, reply: NoReply, timeoutMs: 15_000 });
    await using kept = keeping(
      () => replaceFiles(),
      (identity) => {
        server.renewTls(identity);
        client.renewTls(identity);
      },
    );
    await get('/v1/who');
    const long = get('/v1/hold');
    await expect.poll(() => held).toBe(true);
    expect(await kept.after(LOOK_MS)).toBe(LOOK_MS);
    expect(serial(readTlsIdentity(paths()))).toBe(serial(first));

    await kept.after(300 * DAY_MS);
    const second = readTlsIdentity(paths());
    expect(serial(second)).not.toBe(serial(first));
    expect(kept.expiry).toEqual(
      [first, second].map(({ cert }) => Date.parse(new X509Certificate(cert).validTo)),
    );
    await get('/v1/who');
    expect(seen).toEqual([serial(first), serial(second)]);
    hold.resolve();
    await long;
    // Whoever connects now sees the new one, too.
    const socket = connect({ host: '127.0.0.1', port, ...second, servername: 'h1' });
    await once(socket, 'secureConnect');
    expect(serialOf(socket)).toBe(serial(second));
    socket.destroy();
    expect(kept.lines.map(({ msg }) => msg)).toEqual(['a new certificate is in use']);
  });

  it('tries again when it fails, says so louder as time runs out, and lasts until it works', async () => {
    let tries = 0;
    let works = false;
    await using kept = keeping(async () => {
      tries += 1;
      if (!works) throw new Error('sfmd is away');
      await replaceFiles(1000);
    });
    expect(tries).toBe(0);
    await kept.after(300 * DAY_MS);
    expect(tries).toBe(1);
    await kept.after(LOOK_MS);
    expect(tries).toBe(1); // not every minute
    await kept.after(DAY_MS);
    expect(tries).toBe(2);
    await kept.after(60 * DAY_MS);
    expect(kept.lines.map(({ level }) => level)).toEqual(['warn', 'warn', 'error']);
    // Past its end: nobody gives a new one for it, but sfmd makes its own.
    await kept.after(10 * DAY_MS);
    works = true;
    await kept.after(3600_000);
    expect(kept.lines.at(-1)?.msg).toBe('a new certificate is in use');
  });

  it('takes up files that somebody replaced, and none that are wrong', async () => {
    const taken: string[] = [];
    await using kept = keeping(
      () => Promise.reject(new Error('nobody asked')),
      (identity) => taken.push(serial(identity)),
    );
    await kept.slept();
    await replaceFiles();
    await kept.after(LOOK_MS);
    expect(taken).toEqual([serial(readTlsIdentity(paths()))]);
    const other = await Authority.create(join(dir, 'b'), { name: 'other' });
    const foreign = await other.newIdentity(SUBJECT);
    await writeIdentity(files, { ...foreign, ca: readFileSync(files.ca, 'utf8') });
    await kept.after(LOOK_MS);
    await kept.after(LOOK_MS);
    expect(taken).toHaveLength(1);
    expect(kept.lines.filter(({ level }) => level === 'warn')).toHaveLength(1);
  });
});

describe('key and certificate in their files', () => {
  it('are a pair whenever a writer of new ones is killed', async () => {
    const before = readTlsIdentity(paths());
    expect(existsSync(`${files.key}.old`)).toBe(false);
    // Killed between the two: the new key is there, the new certificate is not.
    renameSync(files.key, `${files.key}.old`);
    const next = await authority.newIdentity(SUBJECT);
    writeFileSync(files.key, next.key, { mode: 0o600 });
    expect(readTlsIdentity(paths())).toEqual(before);
    await replaceFiles();
    expect(existsSync(`${files.key}.old`)).toBe(false);
    expect(statSync(files.key).mode & 0o777).toBe(0o600);
    writeFileSync(files.key, next.key);
    expect(() => readTlsIdentity(paths())).toThrow(/host\.key \(tls_key\) is not the key of .*host\.crt/);
  });
});

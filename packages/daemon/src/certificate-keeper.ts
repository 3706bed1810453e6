// A daemon's own certificate: renewed in time, and taken up when somebody replaced its files, without a restart.
//
//   in use ──due, by chance within a window──▶ renew() writes new files ──▶ taken up: new connections have it
//     ▲                                          └──failed──▶ again later, ever sooner as it runs out
//     └── every minute: are there other files? (snowflock enroll --renew)
//
// Invariants: what is in use is a certificate with its key; connections that are open are not touched by a change.

import { X509Certificate } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import { renewalRetryMs, renewalWindow, type RenewalWindow } from '@snowflock/authority';
import {
  readTlsIdentity,
  SnowflockError,
  toSnowflockError,
  type TlsIdentity,
  type TlsPaths,
} from '@snowflock/protocol';
import type { Log } from './log.ts';

/** Clocks are set, and files replaced: it is looked at as often. */
const LOOK_EVERY_MS = 60_000;
/** With less of its window's life left than this share, a failure to renew is an error rather than a warning. */
const ALARMING_SHARE = 1 / 2;

/** For tests, which do not wait for certificates to grow old. */
export interface KeeperClock {
  readonly nowMs: () => number;
  readonly random: () => number;
  readonly sleep: (ms: number, signal: AbortSignal) => Promise<unknown>;
}

const CLOCK: KeeperClock = {
  nowMs: Date.now,
  random: Math.random,
  sleep: (ms, signal) => sleep(ms, undefined, { signal }),
};

export interface CertificateKeeperOptions {
  readonly paths: TlsPaths;
  readonly identity: TlsIdentity;
  /** Gets a new certificate and replaces the files; ends early when the signal aborts. */
  readonly renew: (signal: AbortSignal) => Promise<unknown>;
  /** `expiresMs`: ms since 1970. Called for the one in use at the start, too. */
  readonly onExpiry: (expiresMs: number) => void;
  readonly onChange: (identity: TlsIdentity) => void;
  readonly log: Log;
  readonly clock?: KeeperClock;
}

export class CertificateKeeper {
  readonly #options: CertificateKeeperOptions;
  readonly #clock: KeeperClock;
  #inUse: Buffer;
  #window: RenewalWindow;
  #nextMs: number;
  /** Contents of files that could not be taken up: said once. */
  #refused: Buffer | null = null;

  constructor(options: CertificateKeeperOptions) {
    this.#options = options;
    this.#clock = options.clock ?? CLOCK;
    this.#inUse = options.identity.cert;
    this.#window = renewalWindow(new X509Certificate(options.identity.cert));
    this.#nextMs = this.#due();
    options.onExpiry(this.#window.expiresMs);
  }

  /** Until the signal aborts. Throws nothing: a daemon without a fresh certificate does what it still can. */
  async run(signal: AbortSignal): Promise<void> {
    while (!signal.aborted) {
      this.#takeUpFiles();
      if (this.#clock.nowMs() >= this.#nextMs) await this.#renew(signal);
      const waitMs = Math.min(Math.max(this.#nextMs - this.#clock.nowMs(), 0), LOOK_EVERY_MS);
      await this.#clock.sleep(waitMs, signal).catch(() => undefined); // told to stop
    }
  }

  #due(): number {
    const { fromMs, untilMs } = this.#window;
    return fromMs + (untilMs - fromMs) * this.#clock.random();
  }

  async #renew(signal: AbortSignal): Promise<void> {
    const { log, renew } = this.#options;
    try {
      await renew(signal);
      if (!this.#takeUpFiles()) throw new SnowflockError('internal', 'what was renewed is not in its files');
    } catch (error) {
      if (signal.aborted) return;
      const leftMs = this.#window.expiresMs - this.#clock.nowMs();
      const retryMs = renewalRetryMs({ leftMs, random: this.#clock.random() });
      this.#nextMs = this.#clock.nowMs() + retryMs;
      const expires = new Date(this.#window.expiresMs).toISOString();
      const fields = { reason: toSnowflockError(error).message, expires, retryMs: Math.round(retryMs) };
      const alarming = leftMs < ALARMING_SHARE * (this.#window.expiresMs - this.#window.fromMs);
      if (alarming) log.error(fields, 'the certificate could not be renewed, and soon expires; trying on');
      else log.warn(fields, 'the certificate could not be renewed yet; trying on');
    }
  }

  /** Whether there were others, and they are in use now. */
  #takeUpFiles(): boolean {
    const { paths, log, onChange, onExpiry } = this.#options;
    let found: Buffer | null = null;
    try {
      const identity = readTlsIdentity(paths);
      found = identity.cert;
      if (found.equals(this.#inUse) || (this.#refused !== null && found.equals(this.#refused))) return false;
      const certificate = new X509Certificate(found);
      const window = renewalWindow(certificate);
      if (!certificate.verify(new X509Certificate(identity.ca).publicKey))
        throw new SnowflockError('bad-config', `${paths.tlsCert} was not issued by ${paths.tlsCa}`);
      if (window.expiresMs <= this.#clock.nowMs())
        throw new SnowflockError('bad-config', `${paths.tlsCert} has expired`);
      onChange(identity);
      this.#inUse = found;
      this.#window = window;
      this.#nextMs = this.#due();
      onExpiry(window.expiresMs);
      const expires = new Date(window.expiresMs).toISOString();
      log.info({ serial: certificate.serialNumber, expires }, 'a new certificate is in use');
      return true;
    } catch (error) {
      if (found !== null) this.#refused = found;
      log.warn({ reason: toSnowflockError(error).message }, 'the files of the certificate are not taken up');
      return false;
    }
  }
}

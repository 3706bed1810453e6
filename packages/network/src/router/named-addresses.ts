// The addresses of the names on the whitelist: looked up when they come onto it, again when their time to live is over, and learnt from
// every answer that a guest gets. An address that nobody renews runs out by itself, in the kernel too.

import { DNS_TYPE, readAddresses, readQuestion, writeQuestion, type DnsQuestion } from './dns-message.ts';

/** However short a name lives: no more questions than this. */
const REFRESH_MIN_S = 15;
const REFRESH_MAX_S = 3600;
/** After a failure. */
const RETRY_S = 5;
/** An address stays allowed beyond its time, so that it is there while it is renewed. */
const GRACE_S = 60;
/** Of all names together. */
const ADDRESSES_MAX = 4096;

export interface Named {
  readonly ip: string;
  readonly seconds: number;
}

export interface NamedAddressesOptions {
  readonly ask: (message: Buffer, question: DnsQuestion) => Promise<Buffer>;
  /** Puts them in force. */
  readonly onAddresses: (named: readonly Named[]) => Promise<void>;
  readonly onFailure: (name: string, error: unknown) => void;
  readonly now?: () => number;
}

export class NamedAddresses implements Disposable {
  readonly #options: NamedAddressesOptions;
  readonly #now: () => number;
  readonly #timers = new Map<string, NodeJS.Timeout>();
  /** Until when, by address. */
  readonly #until = new Map<string, number>();
  #names: ReadonlySet<string> = new Set();

  constructor(options: NamedAddressesOptions) {
    this.#options = options;
    this.#now = options.now ?? (() => performance.now());
  }

  has(name: string): boolean {
    return this.#names.has(name);
  }

  /** What is allowed now; of names that are not on the list any more until their time is over, or nothing when there are none. */
  get current(): Named[] {
    const now = this.#now();
    return [...this.#until].flatMap(([ip, until]) =>
      until > now ? [{ ip, seconds: Math.ceil((until - now) / 1000) }] : [],
    );
  }

  /** Resolves when each new name was looked up once, with or without success. */
  async setNames(names: readonly string[]): Promise<void> {
    const before = this.#names;
    this.#names = new Set(names);
    for (const name of before)
      if (!this.#names.has(name)) {
        clearTimeout(this.#timers.get(name));
        this.#timers.delete(name);
        this.#until.clear(); // whose an address is is not kept: all are looked up again
      }
    const dropped = [...before].some((name) => !this.#names.has(name));
    await Promise.all(names.filter((name) => dropped || !before.has(name)).map((name) => this.#lookUp(name)));
  }

  /** From an answer that is about to be given. Resolves when its addresses can be reached. */
  async learn(answer: Buffer): Promise<number> {
    const found = readAddresses(answer);
    const now = this.#now();
    const news: Named[] = [];
    for (const { ip, ttlS } of found) {
      const seconds = Math.min(Math.max(ttlS, REFRESH_MIN_S), REFRESH_MAX_S) + GRACE_S;
      const left = (this.#until.get(ip) ?? 0) - now;
      // as good as what is in force already
      if (left > (seconds * 1000) / 2) continue;
      if (left <= 0 && this.#until.size >= ADDRESSES_MAX) this.#forgetOld(now);
      if (left <= 0 && this.#until.size >= ADDRESSES_MAX) continue;
      this.#until.set(ip, now + seconds * 1000);
      news.push({ ip, seconds });
    }
    if (news.length > 0) await this.#options.onAddresses(news);
    return found.reduce((least, { ttlS }) => Math.min(least, ttlS), REFRESH_MAX_S);
  }

  [Symbol.dispose](): void {
    for (const timer of this.#timers.values()) clearTimeout(timer);
    this.#timers.clear();
    this.#names = new Set();
  }

  async #lookUp(name: string): Promise<void> {
    let againS = RETRY_S;
    try {
      const message = writeQuestion(0, name, DNS_TYPE.A);
      const question = readQuestion(message);
      if (!question) throw new RangeError(`'${name}' is no DNS name`);
      const ttlS = await this.learn(await this.#options.ask(message, question));
      againS = Math.max(ttlS, REFRESH_MIN_S);
    } catch (error) {
      this.#options.onFailure(name, error);
    }
    if (!this.#names.has(name)) return;
    clearTimeout(this.#timers.get(name));
    this.#timers.set(
      name,
      setTimeout(() => void this.#lookUp(name), againS * 1000),
    );
  }

  #forgetOld(now: number): void {
    for (const [ip, until] of this.#until) if (until <= now) this.#until.delete(ip);
  }
}

// Of a relay: has the memtap that it reads tell it of needs, as far as hosts below want to hear of them.
//
//   quiet --a follower wants more than there is--> asking --told, or nothing new--> quiet          memtap gone --> ended
//
// Owns its connection to the memtap. The memtap waits with its answer for something to tell, so one question is under way at most, and none while
// nobody wants to know.

import { SnowflockError, toSnowflockError } from '@snowflock/protocol/pages';
import { ControlClient } from '../control/control-client.ts';
import { neededReplySchema } from '../control/schemas.ts';
import { decodeNeeds } from '../needs.ts';
import type { NeedLog } from './need-log.ts';

/** A memtap answers, that it has nothing new, after five seconds. */
const CALL_TIMEOUT_MS = 10_000;

export class NeedFeed {
  readonly #memtap: ControlClient;
  readonly #log: NeedLog;
  /** Pages heard of so far. */
  #heard = 0;
  #asking = false;
  #closed = false;

  private constructor(memtap: ControlClient, log: NeedLog) {
    this.#memtap = memtap;
    this.#log = log;
  }

  /** Throws 'unavailable' when the memtap cannot be reached. */
  static async open(options: { readonly controlPath: string; readonly log: NeedLog }): Promise<NeedFeed> {
    const { controlPath: path, log } = options;
    const memtap = await ControlClient.connect({
      ...{ path, peer: 'memtap', timeoutMs: CALL_TIMEOUT_MS },
      onEvent: () => undefined,
    });
    const feed = new NeedFeed(memtap, log);
    log.passOn(() => void feed.#ask());
    return feed;
  }

  close(): void {
    this.#closed = true;
    this.#memtap.close();
  }

  async #ask(): Promise<void> {
    if (this.#asking || this.#closed) return;
    this.#asking = true;
    try {
      const reply = await this.#memtap.call('needed', { from: this.#heard }, { timeoutMs: CALL_TIMEOUT_MS });
      const said = neededReplySchema.safeParse(reply);
      if (!said.success)
        throw new SnowflockError('internal', `memtap: bad reply to 'needed': ${said.error.message}`);
      const pages = decodeNeeds(Buffer.from(said.data.needs, 'base64'));
      this.#heard += pages.length;
      this.#asking = false;
      // whoever wants more than that makes it ask again
      this.#log.hear({ pages, earlier: said.data.earlier });
    } catch (error) {
      if (this.#closed) return;
      console.error('memserver: needs are no longer passed on:', toSnowflockError(error).message);
      this.close();
    }
  }
}

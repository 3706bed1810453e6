// Undoing what was done for a caller that has gone before it got its answer.
//
// A caller that gave its request an id asks again when its connection broke: then the new request takes the old one's
// place, and nothing is undone. So its going away counts only after a while.

import type { Caller } from '../http-routes.ts';

/** An sfld asks again within 250 ms of losing its connection; a busy one within seconds. */
const ASKED_AGAIN_WITHIN_MS = 3000;

interface Pending {
  timer?: NodeJS.Timeout;
}

export class Undelivered implements Disposable {
  readonly #pending = new Map<string, Pending>();

  /** Calls `undo` when the caller goes without its answer, at once if nobody can ask again with that id (null). */
  expect({ id, caller, undo }: { id: string | null; caller: Caller; undo: () => void }): void {
    if (id === null) {
      if (caller.signal.aborted) undo();
      else caller.signal.addEventListener('abort', undo, { once: true });
      return;
    }
    const mine: Pending = {};
    clearTimeout(this.#pending.get(id)?.timer);
    this.#pending.set(id, mine);
    const forget = (): boolean => this.#pending.get(id) === mine && this.#pending.delete(id);
    const gone = (): void => {
      if (this.#pending.get(id) !== mine) return;
      mine.timer = setTimeout(() => {
        if (forget()) undo();
      }, ASKED_AGAIN_WITHIN_MS);
    };
    caller.onAnswered(() => void forget());
    if (caller.signal.aborted) gone();
    else caller.signal.addEventListener('abort', gone, { once: true });
  }

  [Symbol.dispose](): void {
    for (const { timer } of this.#pending.values()) clearTimeout(timer);
    this.#pending.clear();
  }
}

// sfstate --watch: looks again and again, and shows what is new until it is interrupted.
//
//   first look ──fails──▶ error         terminal: the whole screen, drawn anew at every change and resize
//       └──▶ looking ◀──▶ unreachable   pipe:     a line for each thing that changed; with --json the state, one object a line
//
// Invariant: whatever ends it, the terminal has its cursor and its old screen back.

import { setTimeout as sleep } from 'node:timers/promises';
import { toSnowflockError, type SystemState } from '@snowflock/protocol';
import { stateChanges } from './state-changes.ts';
import { formatState } from './state-format.ts';

/** What changes shows within this; sfmd answers in ms. */
const LOOK_INTERVAL_MS = 500;
const ENTER = '\x1b[?1049h\x1b[?25l';
const LEAVE = '\x1b[?25h\x1b[?1049l';
const HOME = '\x1b[H';
const CLEAR_LINE = '\x1b[K';
const CLEAR_BELOW = '\x1b[J';

/** What a watch writes to: process.stdout, or a test's. */
export interface WatchOutput {
  readonly isTTY?: boolean;
  readonly columns?: number;
  readonly rows?: number;
  write(text: string): unknown;
  on(event: 'resize', listener: () => void): unknown;
  off(event: 'resize', listener: () => void): unknown;
}

interface View {
  show(state: SystemState): void;
  /** sfmd or sfld could not be asked; null: it can again. */
  trouble(reason: string | null): void;
  close(): void;
}

/** Returns when the signal aborts. Throws when the very first look fails. */
export async function watchState(
  look: (signal: AbortSignal) => Promise<SystemState>,
  options: {
    readonly output: WatchOutput;
    readonly json: boolean;
    readonly signal: AbortSignal;
    readonly intervalMs?: number;
  },
): Promise<void> {
  const { output, json, signal, intervalMs = LOOK_INTERVAL_MS } = options;
  let state = await look(signal);
  let seen = JSON.stringify(state);
  const view = json ? jsonView(output) : output.isTTY ? screenView(output) : lineView(output);
  try {
    view.show(state);
    while (await pause(intervalMs, signal)) {
      try {
        state = await look(signal);
        view.trouble(null);
      } catch (error) {
        if (!signal.aborted) view.trouble(toSnowflockError(error).message);
        continue;
      }
      const text = JSON.stringify(state);
      if (text !== seen) view.show(state);
      seen = text;
    }
  } finally {
    view.close();
  }
}

/** False when it is time to end. */
async function pause(ms: number, signal: AbortSignal): Promise<boolean> {
  await sleep(ms, undefined, { signal }).catch(() => undefined); // interrupted
  return !signal.aborted;
}

function jsonView(output: WatchOutput): View {
  return {
    show: (state) => output.write(`${JSON.stringify(state)}\n`),
    trouble: () => undefined, // a reader of JSON sees no state then
    close: () => undefined,
  };
}

function lineView(output: WatchOutput): View {
  let before: SystemState | null = null;
  let told: string | null = null;
  const say = (line: string): unknown => output.write(`${new Date().toISOString()} ${line}\n`);
  return {
    show(state) {
      for (const line of stateChanges(before, state)) say(line);
      before = state;
    },
    trouble(reason) {
      if (reason !== null && told === null) say(`the state cannot be asked for: ${reason}`);
      if (reason === null && told !== null) say('the state can be asked for again');
      told = reason;
    },
    close: () => undefined,
  };
}

function screenView(output: WatchOutput): View {
  let state: SystemState | null = null;
  let changedAt = new Date();
  let problem: string | null = null;
  const draw = (): void => {
    if (state === null) return;
    const { columns: width = 80, rows = 24 } = output;
    const title = `sfstate: since ${changedAt.toLocaleTimeString('en-GB')}; Ctrl-C ends`;
    const lines = [
      cut(problem === null ? title : `sfstate: this is OLD; ${problem}`, width),
      '',
      ...formatState(state, { width }).trimEnd().split('\n'),
    ];
    const hidden = lines.length - rows;
    if (hidden > 0) lines.splice(rows - 1, Infinity, cut(`... and ${hidden + 1} more lines`, width));
    output.write(HOME + lines.map((line) => line + CLEAR_LINE).join('\r\n') + CLEAR_BELOW);
  };
  const restore = (): void => void output.write(LEAVE);
  output.write(ENTER);
  output.on('resize', draw);
  process.once('exit', restore);
  return {
    show(next) {
      state = next;
      changedAt = new Date();
      draw();
    },
    trouble(reason) {
      if (reason === problem) return;
      problem = reason;
      draw();
    },
    close() {
      output.off('resize', draw);
      process.off('exit', restore);
      restore();
    },
  };
}

function cut(line: string, width: number): string {
  return line.length <= width ? line : `${line.slice(0, width - 1)}…`;
}

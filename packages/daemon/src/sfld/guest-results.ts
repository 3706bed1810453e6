// Clones that return something, as a guest asks for it: what an exit brings, and what a wait gives the forking VM.

import {
  exitStatus,
  SnowflockError,
  WaitReply,
  WaitRequest,
  type ControlClient,
  type Outcome,
  type VmRef,
} from '@snowflock/protocol';
import { askMaster } from './ask-master.ts';
import type { ResultReader } from './result-store.ts';

const READ_BYTES = 64 * 1024;
/** Of what a person is told about one clone. */
const REASON_MAX = 1_000;

/** What a call is answered with. */
export interface GuestReply {
  /** One line. */
  readonly text: string;
  /** Follow it, as many as its last word says. */
  readonly bytes?: AsyncIterable<Buffer>;
}

export interface WaitFor {
  readonly vm: VmRef;
  readonly host: string;
  readonly masterDaemon: ControlClient;
  readonly results: { read(ticket: string, reader: VmRef): ResultReader | null };
}

/** STATUS of ic_exit. */
export function statusWord(word: string | undefined): number {
  const parsed = exitStatus.safeParse(
    word === undefined ? 0 : /^-?\d{1,10}$/.test(word) ? Number(word) : word,
  );
  if (parsed.success) return parsed.data;
  throw new SnowflockError(
    'bad-request',
    `the status must be a whole number of 32 bits, got '${word ?? ''}'`,
  );
}

/** COUNT DEADLINE_MS BUDGET_MS BUDGET_BYTES */
export function waitWords(words: readonly string[]): WaitRequest {
  const limit = (at: number): number | string | null => {
    const word = words[at] ?? '';
    return word === '-' ? null : /^\d{1,16}$/.test(word) ? Number(word) : word;
  };
  const parsed = WaitRequest.safeParse({
    count: limit(0),
    deadlineMs: limit(1),
    budgetMs: limit(2),
    budgetBytes: limit(3),
  });
  if (parsed.success && words.length === 4) return parsed.data;
  const issue = parsed.error?.issues[0];
  throw new SnowflockError(
    'bad-request',
    issue
      ? `${issue.path.join('.')} must be a whole number${issue.path[0] === 'count' ? ' of 1 or more' : ''}, or '-'`
      : 'wait_clones takes a ticket, COUNT, DEADLINE_MS, BUDGET_MS and BUDGET_BYTES',
  );
}

/** Waits, then gives a record of each clone with its result. The ticket stays. */
export async function waitClones(
  { vm, host, masterDaemon, results }: WaitFor,
  ticket: string,
  wait: WaitRequest,
  options: { signal: AbortSignal; timeoutMs: number },
): Promise<GuestReply> {
  const askedAtMs = performance.now();
  const { deadlineMs } = wait;
  const { clones } = await askMaster(masterDaemon, {
    method: 'POST',
    path: `/v1/clusters/${vm.clusterid}/tickets/${ticket}/wait?vm=${vm.vmid}`,
    // Asked again when sfmd was restarted: the time goes on.
    get body() {
      const waitedMs = performance.now() - askedAtMs;
      return { ...wait, deadlineMs: deadlineMs === null ? null : Math.max(0, deadlineMs - waitedMs) };
    },
    reply: WaitReply,
    ...options,
  });
  const reader = results.read(ticket, vm);
  const records = clones.map((clone) => recordOf(clone, reader, host));
  const sizeBytes = records.reduce((sum, { line, resultBytes }) => sum + line.length + resultBytes, 0);
  return { text: `ok ${clones.length} +${sizeBytes}`, bytes: gathered(recordBytes(records, reader)) };
}

interface ResultRecord {
  readonly vmid: number;
  readonly line: Buffer;
  readonly resultBytes: number;
}

function recordOf(clone: Outcome, reader: ResultReader | null, host: string): ResultRecord {
  const stored = reader?.results.get(clone.vmid);
  const { vmid, how, status, reason, resultBytes } = clone;
  // It had said all it had to say when it was lost.
  if (how === 'lost' && stored)
    return record(vmid, { how: 'exited', ...stored, reason: `ic_exit; it was lost then: ${reason}` });
  if (how !== 'exited' || resultBytes === 0) return record(vmid, { how, status, sizeBytes: 0, reason });
  if (stored?.sizeBytes === resultBytes) return record(vmid, { how, status, sizeBytes: resultBytes, reason });
  const missing = `it exited with status ${status ?? 0} and ${resultBytes} bytes of result, which host ${host} does not have any more`;
  return record(vmid, { how: 'lost', status: null, sizeBytes: 0, reason: missing });
}

function record(
  vmid: number,
  of: { how: Outcome['how']; status: number | null; sizeBytes: number; reason: string },
): ResultRecord {
  const reason = of.reason.replace(/[\s\p{Cc}]+/gu, ' ').slice(0, REASON_MAX) || 'unknown';
  const line = Buffer.from(`${vmid} ${of.how} ${of.status ?? -1} ${of.sizeBytes} ${reason}\n`);
  return { vmid, line, resultBytes: of.sizeBytes };
}

/** Many clones that return nothing are many short lines: they go in few frames. */
async function* gathered(chunks: AsyncIterable<Buffer>): AsyncGenerator<Buffer> {
  let waiting: Buffer[] = [];
  let sizeBytes = 0;
  for await (const chunk of chunks) {
    waiting.push(chunk);
    sizeBytes += chunk.length;
    if (sizeBytes < READ_BYTES) continue;
    yield Buffer.concat(waiting);
    waiting = [];
    sizeBytes = 0;
  }
  if (sizeBytes > 0) yield Buffer.concat(waiting);
}

async function* recordBytes(
  records: readonly ResultRecord[],
  reader: ResultReader | null,
): AsyncGenerator<Buffer> {
  await using _reading = reader;
  for (const { vmid, line, resultBytes } of records) {
    yield line;
    if (resultBytes === 0 || !reader) continue;
    await using file = await reader.open(vmid);
    for (let left = resultBytes; left > 0;) {
      const { bytesRead, buffer } = await file.read(Buffer.allocUnsafe(Math.min(left, READ_BYTES)), 0);
      if (bytesRead === 0) throw new SnowflockError('internal', `the result of VM ${vmid} became shorter`);
      left -= bytesRead;
      yield buffer.subarray(0, bytesRead);
    }
  }
}

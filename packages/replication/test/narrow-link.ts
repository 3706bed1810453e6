// A memserver and a memtap with a link of a given rate between them: a network namespace, a veth pair, tc tbf.
//
//   tools/exec-node packages/replication/test/narrow-link.ts RATE_MBIT [PAGE_FILE]
//
// measures, as root, how long a sequential reader takes for all pages (of a checkpoint's page file, or of 64 MiB that do not
// compress) and what crossed the link. Rate 0: as fast as it goes.

import { execFile, execFileSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { closeSync, openSync, readSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { promisify } from 'node:util';
import type { MemserverStats, MemtapStats } from '../src/index.ts';
import { Harness } from './vm-harness.ts';

const run = promisify(execFile);
const BURST_BYTES = 131_072;
const TIMEOUT_MS = 120_000;
const PAGES = 16_384;
const ID_AT = 28;

export interface ReaderTask {
  readonly source: { readonly address: string; readonly port: number };
  readonly keyHex: string;
  readonly presencePath: string;
  readonly pages: number;
  /** Arguments of the program that reads the RAM file, which stands in place of RAM. */
  readonly command: readonly string[];
  readonly compress: boolean;
}

export interface ReaderResult {
  readonly output: string;
  readonly ms: number;
  readonly stats: MemtapStats;
}

export interface LinkResult extends ReaderResult {
  readonly served: MemserverStats;
}

export interface LinkOptions {
  /** Undefined: as fast as it goes. */
  readonly rateMbit: number | undefined;
  /** Of the source's pattern, or a checkpoint's file of pages. */
  readonly content: { readonly seed: number; readonly pages: number } | { readonly pageFile: string };
  /** False: the memtap may ask for nothing compressed. */
  readonly compress?: boolean;
}

/** Reads all pages at the other end of the link, in order. */
export async function readOverLink(harness: Harness, options: LinkOptions): Promise<LinkResult> {
  const { rateMbit, content, compress = true } = options;
  const netns = `sf-narrow-${process.pid}`;
  const device = `sfn${process.pid}`;
  const subnet = `10.77.${process.pid % 256}`;
  const ip = (...args: string[]): Buffer => execFileSync('ip', args);
  ip('netns', 'add', netns);
  harness.defer(() => void ip('netns', 'del', netns));
  ip('link', 'add', device, 'type', 'veth', 'peer', 'name', 'eth0', 'netns', netns);
  ip('addr', 'add', `${subnet}.1/24`, 'dev', device);
  ip('link', 'set', device, 'up');
  ip('-n', netns, 'addr', 'add', `${subnet}.2/24`, 'dev', 'eth0');
  ip('-n', netns, 'link', 'set', 'eth0', 'up');
  const limit = ['tbf', 'rate', `${rateMbit ?? 0}mbit`, 'burst', String(BURST_BYTES), 'latency', '50ms'];
  if (rateMbit !== undefined) execFileSync('tc', ['qdisc', 'replace', 'dev', device, 'root', ...limit]);

  const key = randomBytes(32);
  const memserver = await harness.memserver({ key, listenAddress: `${subnet}.1` });
  let pages: number;
  let presence: Buffer;
  let command: string[];
  if ('seed' in content) {
    pages = content.pages;
    const { leasePath } = memserver;
    const source = await harness.source({ leasePath, kind: 'dense', ...content });
    ({ presence } = await memserver.freeze({ pid: source.pid, ramRanges: source.ranges }));
    const client = harness.path('fault-client');
    command = [client, 'RAM', ...[content.seed, 'dense', 'seq', pages].map(String)];
  } else {
    const head = headOf(content.pageFile);
    pages = head.pages;
    const ram = { path: content.pageFile, pageCount: pages };
    ({ presence } = await memserver.openCheckpoint({ id: head.id, ram }));
    command = ['sha256sum', 'RAM'];
  }
  const presencePath = harness.path('narrow.presence');
  writeFileSync(presencePath, presence);
  const source = { address: `${subnet}.1`, port: memserver.port };
  const keyHex = key.toString('hex');
  const task: ReaderTask = { source, keyHex, presencePath, pages, command, compress };
  const script = join(import.meta.dirname, 'narrow-reader.ts');
  const args = ['netns', 'exec', netns, process.execPath, script, JSON.stringify(task)];
  const { stdout } = await run('ip', args, { timeout: TIMEOUT_MS });
  return { ...(JSON.parse(stdout) as ReaderResult), served: await memserver.stats() };
}

function headOf(pageFile: string): { id: string; pages: number } {
  const head = Buffer.alloc(64);
  const fd = openSync(pageFile, 'r');
  readSync(fd, head);
  closeSync(fd);
  const hex = head.toString('hex', ID_AT, ID_AT + 16);
  return { id: hex.replace(/^(.{8})(.{4})(.{4})(.{4})/, '$1-$2-$3-$4-'), pages: head.readUInt32LE(8) };
}

if (import.meta.main) {
  const [rate = '0', pageFile] = process.argv.slice(2);
  const content = pageFile === undefined ? { seed: 7, pages: PAGES } : { pageFile };
  await using harness = new Harness();
  const { ms, stats, served, output } = await readOverLink(harness, {
    rateMbit: Number(rate) || undefined,
    content,
  });
  const { wireBytesReceived, demandPages, prefetchedPages, compressedPages } = stats;
  const read = { pages: demandPages + prefetchedPages, compressedPages, wireBytesReceived };
  console.log(JSON.stringify({ rate, ms: Math.round(ms), ...read, requests: served.requests, output }));
}

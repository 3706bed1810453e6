// What clones exited with, on the host of the VM that forked them, until their ticket is over.
//
//   fork ──open──▶ box ◀──put── hosts of its clones        box ──read──▶ the joiner        ──remove──▶ gone
//
//   <state_dir>/results/<ticket>/box.json      whose it is, and which host runs which clone
//                                5_-3          what VM 5 exited with, and its status
//                                5.part        on its way; worth nothing
//   <state_dir>/results/<ticket>.gone          removed while it was being read
//
// Invariants: a file is whole or not there; a box never holds, with what is on its way, more than its ticket may; a box that is
// being read keeps its files until the reader is done. All of it survives the daemon; nothing the VMs.

import { mkdirSync, readdirSync, readFileSync, renameSync, rmSync, statSync } from 'node:fs';
import { mkdir, open, rename, rm, writeFile, type FileHandle } from 'node:fs/promises';
import { basename, join } from 'node:path';
import type { Readable } from 'node:stream';
import { setTimeout as sleep } from 'node:timers/promises';
import { ResultBox, SnowflockError, type VmRef } from '@snowflock/protocol';
import type { Log } from '../log.ts';

/** A result may be gigabytes. */
const SEAL_TIMEOUT_MS = 30_000;
const SEAL_POLL_MS = 20;

export interface ResultLimits {
  /** What one clone may exit with. */
  readonly cloneBytes: number;
  /** All clones of a ticket together. */
  readonly ticketBytes: number;
}

/** A result that is here. */
export interface StoredResult {
  readonly status: number;
  readonly sizeBytes: number;
}

interface OpenBox {
  box: ResultBox;
  path: string;
  readonly results: Map<number, StoredResult>;
  /** Bytes on their way, by vmid. */
  readonly arriving: Map<number, number>;
  readers: number;
  gone: boolean;
  /** Its VM is about to leave: what comes now has to come again. */
  sealed: boolean;
}

export class ResultStore {
  readonly limits: ResultLimits;
  readonly #host: string;
  readonly #directory: string;
  readonly #boxes = new Map<string, OpenBox>();

  /** Finds what the last sfld had. */
  constructor(options: { host: string; stateDir: string; limits: ResultLimits; log: Log }) {
    this.limits = options.limits;
    this.#host = options.host;
    this.#directory = join(options.stateDir, 'results');
    mkdirSync(this.#directory, { recursive: true, mode: 0o700 });
    for (const name of readdirSync(this.#directory)) {
      const path = join(this.#directory, name);
      try {
        const box = ResultBox.parse(JSON.parse(readFileSync(join(path, 'box.json'), 'utf8')));
        if (box.ticket !== name) throw new Error('removed while it was read');
        this.#boxes.set(box.ticket, { ...fresh(box, path), results: findResults(path) });
      } catch (error) {
        options.log.debug({ path, err: error }, 'results of nobody are removed');
        rmSync(path, { recursive: true, force: true });
      }
    }
  }

  /** Before the fork. Throws when the disk has no room for as much as its name. */
  async open(box: ResultBox): Promise<void> {
    const path = join(this.#directory, box.ticket);
    try {
      await mkdir(path, { recursive: true, mode: 0o700 });
      await writeFile(join(path, 'box.json'), JSON.stringify(box), { mode: 0o600 });
    } catch (error) {
      await rm(path, { recursive: true, force: true });
      throw this.#diskError(error, `prepare for the results of ticket ${box.ticket}`);
    }
    this.#boxes.set(box.ticket, fresh(box, path));
  }

  /** Of one VM. */
  boxesOf({ clusterid, vmid }: VmRef): ResultBox[] {
    const its = (box: ResultBox): boolean => box.clusterid === clusterid && box.vmid === vmid;
    return [...this.#boxes.values()].map(({ box }) => box).filter(its);
  }

  boxOf(ticket: string): ResultBox | undefined {
    return this.#boxes.get(ticket)?.box;
  }

  /** Nothing more is taken until it is unsealed; resolves when nothing is on its way. Throws 'busy' when that takes too long. */
  async seal(ticket: string): Promise<void> {
    const box = this.#box(ticket);
    box.sealed = true;
    const end = performance.now() + SEAL_TIMEOUT_MS;
    while (box.arriving.size > 0 && performance.now() < end) await sleep(SEAL_POLL_MS);
    if (box.arriving.size === 0) return;
    box.sealed = false;
    throw new SnowflockError('busy', `clones of ticket ${ticket} are exiting just now; try again`);
  }

  unseal(ticket: string): void {
    const box = this.#boxes.get(ticket);
    if (box) box.sealed = false;
  }

  /** A clone has moved to another host: its result comes from there. */
  async cloneMoved({ ticket, vmid, host }: { ticket: string; vmid: number; host: string }): Promise<void> {
    const open = this.#box(ticket);
    const clones = open.box.clones.map((each) => (each.vmid === vmid ? { vmid, host } : each));
    open.box = { ...open.box, clones };
    await writeFile(join(open.path, 'box.json'), JSON.stringify(open.box), { mode: 0o600 });
  }

  /** Tickets of a cluster that have a box. */
  ticketsOf(clusterid: number): string[] {
    return [...this.#boxes.values()].flatMap(({ box }) => (box.clusterid === clusterid ? [box.ticket] : []));
  }

  /** Removes the boxes of VMs that are not here. */
  async sweep(isHere: (vm: VmRef) => boolean): Promise<void> {
    for (const { box } of [...this.#boxes.values()]) if (!isHere(box)) await this.remove(box.ticket);
  }

  /** Throws unless this is where the clone's result belongs, and `isHost` says yes to the host that runs it. */
  assertMayPut(ticket: string, vmid: number, isHost: (host: string) => boolean): void {
    const clone = this.#box(ticket).box.clones.find((each) => each.vmid === vmid);
    if (!clone) throw new SnowflockError('no-such-vm', `ticket ${ticket} has no VM ${vmid}`);
    if (isHost(clone.host)) return;
    throw new SnowflockError(
      'unauthorized',
      `the result of VM ${vmid} of ticket ${ticket} comes from host '${clone.host}' alone`,
    );
  }

  /** Stores what a clone exits with; takes the place of what it said before. Reads `source` to its end, whatever becomes of it. */
  async put(
    of: { ticket: string; vmid: number },
    { source, ...result }: StoredResult & { readonly source: Readable },
  ): Promise<void> {
    source.on('error', () => undefined); // whoever reads it sees it
    try {
      const box = this.#box(of.ticket);
      this.#reserve(box, of.vmid, result.sizeBytes);
      try {
        await this.#store(box, of.vmid, { ...result, source });
      } finally {
        box.arriving.delete(of.vmid);
      }
    } catch (error) {
      source.resume(); // destroyed, it could not be answered why
      throw this.#diskError(error, `store the ${result.sizeBytes} bytes that VM ${of.vmid} exits with`);
    }
  }

  async #store(
    box: OpenBox,
    vmid: number,
    { status, sizeBytes, source }: StoredResult & { readonly source: Readable },
  ): Promise<void> {
    const part = join(box.path, `${vmid}.part`);
    try {
      await using file = await open(part, 'w', 0o600);
      let left = sizeBytes;
      for await (const chunk of source.iterator({ destroyOnReturn: false }) as AsyncIterable<Buffer>) {
        left -= chunk.length;
        if (left < 0) break;
        await file.writeFile(chunk);
      }
      if (left !== 0)
        throw new SnowflockError('bad-request', `the result has not the ${sizeBytes} bytes announced`);
      await this.drop({ ticket: box.box.ticket, vmid });
      await rename(part, join(box.path, `${vmid}_${status}`));
      box.results.set(vmid, { status, sizeBytes });
    } catch (error) {
      await rm(part, { force: true });
      throw error;
    }
  }

  /** Of a clone that runs on after all. Idempotent. */
  async drop({ ticket, vmid }: { ticket: string; vmid: number }): Promise<void> {
    const box = this.#boxes.get(ticket);
    const result = box?.results.get(vmid);
    if (!box || !result) return;
    box.results.delete(vmid);
    await rm(join(box.path, `${vmid}_${result.status}`), { force: true });
  }

  /** For whoever forked; null when there is no box of his for the ticket. Dispose it. */
  read(ticket: string, reader: VmRef): ResultReader | null {
    const box = this.#boxes.get(ticket);
    if (!box || box.box.clusterid !== reader.clusterid || box.box.vmid !== reader.vmid) return null;
    return new BoxReader(box);
  }

  /** Idempotent. */
  async remove(ticket: string): Promise<void> {
    const box = this.#boxes.get(ticket);
    if (!box) return;
    this.#boxes.delete(ticket);
    box.gone = true;
    if (box.readers === 0) return rm(box.path, { recursive: true, force: true });
    const path = `${box.path}.gone`;
    renameSync(box.path, path);
    box.path = path;
  }

  #box(ticket: string): OpenBox {
    const box = this.#boxes.get(ticket);
    if (box) return box;
    throw new SnowflockError(
      'no-such-ticket',
      `host ${this.#host} expects no results for ticket ${ticket}: it is over, or was forked elsewhere`,
    );
  }

  #reserve(box: OpenBox, vmid: number, sizeBytes: number): void {
    const { cloneBytes, ticketBytes } = this.limits;
    if (box.sealed)
      throw new SnowflockError('busy', `the VM that waits for it is just moving to another host; try again`);
    if (box.arriving.has(vmid)) throw new SnowflockError('busy', `VM ${vmid} is exiting already`);
    if (sizeBytes > cloneBytes) throw tooLarge(sizeBytes, cloneBytes, this.#host);
    let others = 0;
    for (const [each, stored] of box.results) if (each !== vmid) others += stored.sizeBytes;
    for (const bytes of box.arriving.values()) others += bytes;
    if (others + sizeBytes > ticketBytes)
      throw new SnowflockError(
        'result-too-large',
        `${sizeBytes} bytes are more than the ${ticketBytes - others} that are left of the ${ticketBytes} which the clones of a ticket may return together (max_ticket_result_bytes of host ${this.#host}); exit with less`,
      );
    box.arriving.set(vmid, sizeBytes);
  }

  #diskError(error: unknown, what: string): unknown {
    const { code, message } = error as NodeJS.ErrnoException;
    if (error instanceof SnowflockError) return error;
    const isFull = code === 'ENOSPC' || code === 'EDQUOT';
    return new SnowflockError(
      isFull ? 'no-resources' : 'unavailable',
      `host ${this.#host} could not ${what}: ${message}${isFull ? '; make room on its disk, or exit with less' : ''}`,
      { cause: error },
    );
  }
}

export function tooLarge(sizeBytes: number, mostBytes: number, host: string): SnowflockError {
  return new SnowflockError(
    'result-too-large',
    `${sizeBytes} bytes are more than the ${mostBytes} that a clone may exit with (max_result_bytes of host ${host}); exit with less`,
  );
}

export interface ResultReader extends AsyncDisposable {
  readonly results: ReadonlyMap<number, StoredResult>;
  /** The caller closes it. */
  open(vmid: number): Promise<FileHandle>;
}

class BoxReader implements ResultReader {
  readonly #box: OpenBox;
  #done = false;

  constructor(box: OpenBox) {
    this.#box = box;
    box.readers += 1;
  }

  get results(): ReadonlyMap<number, StoredResult> {
    return this.#box.results;
  }

  open(vmid: number): Promise<FileHandle> {
    return open(join(this.#box.path, `${vmid}_${this.results.get(vmid)?.status ?? 0}`), 'r');
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#done) return;
    this.#done = true;
    this.#box.readers -= 1;
    if (this.#box.gone && this.#box.readers === 0) await rm(this.#box.path, { recursive: true, force: true });
  }
}

function fresh(box: ResultBox, path: string): OpenBox {
  return { box, path, results: new Map(), arriving: new Map(), readers: 0, gone: false, sealed: false };
}

/** Whole ones; what was on its way is removed. */
function findResults(directory: string): Map<number, StoredResult> {
  const results = new Map<number, StoredResult>();
  for (const name of readdirSync(directory)) {
    const path = join(directory, name);
    const [, vmid, status] = /^(\d+)_(-?\d+)$/.exec(basename(name)) ?? [];
    if (vmid !== undefined && status !== undefined)
      results.set(Number(vmid), { status: Number(status), sizeBytes: statSync(path).size });
    else if (name.endsWith('.part')) rmSync(path, { force: true });
  }
  return results;
}

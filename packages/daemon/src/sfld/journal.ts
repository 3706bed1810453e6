// What this host's sfld owns, on disk: written before a thing is made and after each change, so that whatever kills the daemon,
// the next one finds every thing and either adopts or destroys it (adoption.ts).
//
//   <state_dir>/sfld-journal/boot          the boot of the machine that the rest is of, and the accelerator chosen since
//   <state_dir>/sfld-journal/master-0.json one file for each master VM, fork source, clone group and router
//
// Files are replaced whole, and hold the keys of forks: mode 0600. They are not synced: what they tell of are processes, and a
// power cut that could lose the file has ended the process too.

import { mkdirSync, readdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import {
  ExposedPort,
  exitStatus,
  PrepareClones,
  SendVm,
  SnowflockError,
  ticketId,
  VmShape,
  type VmEnded,
} from '@snowflock/protocol';
import { z } from 'zod';
import type { Log } from '../log.ts';

const RETRY_MS = 1000;
const BOOT_ID = '/proc/sys/kernel/random/boot_id';

/** The fork of a VM that is under way. Without a ticket: of a checkpoint. */
const ForkUnderWay = z.object({
  ticket: ticketId.nullable(),
  forkId: z.number(),
  /** It is no fork: the VM goes to this host, and whether it goes on here is only known from there. */
  to: SendVm.shape.to.optional(),
});
export type ForkUnderWay = z.infer<typeof ForkUnderWay>;

const ProcessMark = z.object({ pid: z.int().min(1), startTicks: z.number() });

export const MasterEntry = z.object({
  kind: z.literal('master'),
  clusterid: z.int(),
  shape: VmShape,
  diskBytes: z.number(),
  /** Null: it was about to be started. */
  process: ProcessMark.nullable(),
  fork: ForkUnderWay.nullable(),
});
export type MasterEntry = z.infer<typeof MasterEntry>;

export const SourceEntry = z.object({
  kind: z.literal('source'),
  ticket: ticketId,
  clusterid: z.int(),
  /** vmid of the VM that forks. */
  owner: z.int().default(0),
  /** The ticket that it was itself cloned with. */
  upstream: ticketId.nullable().default(null),
  keyHex: z.string(),
  /** Null: an older sfmd named none. */
  targets: z.array(z.string()).nullable().default(null),
  /** Of files that it serves, which go with it; null: none of its own. */
  pagesDirectory: z.string().nullable().default(null),
  memserver: ProcessMark.extend({ port: z.int() }).nullable(),
});
export type SourceEntry = z.infer<typeof SourceEntry>;

/** What a clone has exited with. */
const CloneExit = z.object({ status: exitStatus, resultBytes: z.int().min(0) });
export type CloneExit = z.infer<typeof CloneExit>;

export const GroupEntry = z.object({
  kind: z.literal('group'),
  request: PrepareClones,
  /** 'launching': some clones may have run already, and nobody was told which. */
  state: z.enum(['preparing', 'prepared', 'launching', 'launched']),
  /** Of the fork; 0 before it. */
  nclones: z.int(),
  /** Its clones do not join the network. */
  isolated: z.boolean().default(false),
  /** A clone has gone to another host. */
  left: z.boolean().default(false),
  /** All pages are on this host: nothing is fetched from the one that they came from any more. */
  fetched: z.boolean().default(false),
  memtap: ProcessMark.nullable(),
  /** What passes pages on to other hosts; null: nothing does. */
  relay: ProcessMark.extend({ port: z.int() }).nullable().default(null),
  /**
   * `exit`: the clone has called ic_exit, whatever of it is still there; kept until sfmd has been told. `resetting`: its QEMU is on the
   * way back to the fork point, and must not go on.
   */
  clones: z.array(
    z.object({
      vmid: z.int(),
      process: ProcessMark,
      fork: ForkUnderWay.nullable().default(null),
      exit: CloneExit.nullable().default(null),
      resetting: z.boolean().default(false),
    }),
  ),
});
export type GroupEntry = z.infer<typeof GroupEntry>;

export const RouterEntry = z.object({
  kind: z.literal('router'),
  clusterid: z.int(),
  /** Null: it was about to be started. */
  process: ProcessMark.nullable(),
  exposed: z.array(ExposedPort),
});
export type RouterEntry = z.infer<typeof RouterEntry>;

const JournalEntry = z.discriminatedUnion('kind', [MasterEntry, SourceEntry, GroupEntry, RouterEntry]);
export type JournalEntry = z.infer<typeof JournalEntry>;

const Boot = z.object({ id: z.string(), accel: z.enum(['kvm', 'tcg']).nullable() });
type Boot = z.infer<typeof Boot>;

/** As sfmd is told. */
export function exitedWith(exit: CloneExit): VmEnded {
  return { how: 'exited', reason: 'ic_exit', ...exit };
}

function nameOf(entry: JournalEntry): string {
  switch (entry.kind) {
    case 'master':
      return `master-${entry.clusterid}`;
    case 'source':
      return `source-${entry.ticket}`;
    case 'group':
      return `group-${entry.request.ticket}`;
    case 'router':
      return `router-${entry.clusterid}`;
  }
}

export class Journal {
  readonly #directory: string;
  readonly #log: Log;
  #boot: Boot;
  readonly #entries = new Map<string, JournalEntry>();
  /** Names of entries that the disk had no room for. */
  readonly #unwritten = new Set<string>();
  #retry: NodeJS.Timeout | undefined;

  /** Reads what the last sfld wrote; a file that cannot be read is dropped: what it told of is then nobody's, and is swept. */
  constructor(options: { readonly stateDir: string; readonly log: Log }) {
    this.#log = options.log;
    this.#directory = join(options.stateDir, 'sfld-journal');
    mkdirSync(this.#directory, { recursive: true, mode: 0o700 });
    const bootFile = join(this.#directory, 'boot');
    this.#boot = { id: readFileSync(BOOT_ID, 'utf8').trim(), accel: null };
    const last = parseBoot(readIfThere(bootFile));
    const sameBoot = last?.id === this.#boot.id;
    if (sameBoot) this.#boot = last;
    for (const file of readdirSync(this.#directory).filter((each) => each !== 'boot')) {
      const path = join(this.#directory, file);
      const entry = sameBoot && file.endsWith('.json') ? parseEntry(path, options.log) : undefined;
      if (entry) this.#entries.set(nameOf(entry), entry);
      else rmSync(path, { force: true });
    }
    if (!sameBoot) this.#write('boot', JSON.stringify(this.#boot));
  }

  /** Of the VMs that are here; null: none was chosen since the machine was started. */
  get accel(): Boot['accel'] {
    return this.#boot.accel;
  }

  set accel(accel: Boot['accel']) {
    if (accel === this.#boot.accel) return;
    this.#boot = { ...this.#boot, accel };
    this.#write('boot', JSON.stringify(this.#boot));
  }

  get entries(): JournalEntry[] {
    return [...this.#entries.values()];
  }

  /** Before something is made. Throws 'unavailable' when the disk does not take it; then it must not be made. */
  put(entry: JournalEntry): void {
    const name = nameOf(entry);
    this.#write(`${name}.json`, JSON.stringify(entry));
    this.#unwritten.delete(name);
    this.#entries.set(name, entry);
  }

  /** After something is over: what is not written now is written as soon as the disk takes it. */
  note(entry: JournalEntry): void {
    try {
      this.put(entry);
    } catch (error) {
      const name = nameOf(entry);
      this.#entries.set(name, entry);
      this.#unwritten.add(name);
      this.#log.error({ err: error, entry: name }, 'the journal is behind');
      this.#retry ??= setInterval(() => this.#writeLate(), RETRY_MS).unref();
    }
  }

  remove(entry: JournalEntry): void {
    const name = nameOf(entry);
    this.#entries.delete(name);
    this.#unwritten.delete(name);
    rmSync(join(this.#directory, `${name}.json`), { force: true });
  }

  #writeLate(): void {
    for (const name of this.#unwritten) {
      const entry = this.#entries.get(name);
      try {
        if (entry) this.put(entry);
        else this.#unwritten.delete(name);
      } catch {
        return; // there is still no room; it was said already
      }
    }
    clearInterval(this.#retry);
    this.#retry = undefined;
  }

  #write(file: string, text: string): void {
    const path = join(this.#directory, file);
    try {
      writeFileSync(`${path}.new`, text, { mode: 0o600 });
      renameSync(`${path}.new`, path);
    } catch (error) {
      rmSync(`${path}.new`, { force: true });
      throw new SnowflockError(
        'unavailable',
        `the journal of this host's sfld cannot be written: ${(error as Error).message}; make room on the disk of ${this.#directory}`,
        { cause: error },
      );
    }
  }
}

function readIfThere(path: string): string | null {
  try {
    return readFileSync(path, 'utf8');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return null;
    throw error;
  }
}

/** Null for none, and for one that was cut short: then nothing is known of what it was of. */
function parseBoot(text: string | null): Boot | null {
  try {
    return Boot.parse(JSON.parse(text ?? ''));
  } catch {
    return null;
  }
}

function parseEntry(path: string, log: Log): JournalEntry | undefined {
  try {
    return JournalEntry.parse(JSON.parse(readFileSync(path, 'utf8')));
  } catch (error) {
    log.error({ path, err: error }, 'an entry of the journal cannot be read; what it told of is removed');
    return undefined;
  }
}

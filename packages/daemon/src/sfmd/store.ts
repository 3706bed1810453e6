// sfmd's memory of its state: one SQLite file, STATE_DIR/state.db.
//
//   open ──▶ (migrated, checked) ──load──▶ state ──commit──▶ state' ... ──close──▶
//                                           ▲        └──failed: the file is as before, and so is what committed() gives
//
// Invariants: a command's changes are one transaction, on the disk before anybody hears of them (write-ahead log, flushed
// at each commit: a power loss takes nothing that was answered); the file has one sfmd at a time; it is readable by its
// owner only, since tickets are in it.

import { chmodSync, closeSync, fsyncSync, mkdirSync, openSync } from 'node:fs';
import { dirname } from 'node:path';
import { DatabaseSync, type StatementSync } from 'node:sqlite';
import { SnowflockError } from '@snowflock/protocol';
import {
  brokenInvariants,
  createSystem,
  ENTITY_KINDS,
  StoredRows,
  systemOf,
  type EntityKind,
  type RowChanges,
  type SystemData,
} from '@snowflock/cluster';
import { MIGRATIONS } from './store-migrations.ts';
import { STORED_ROWS } from './store-rows.ts';

/** Result codes of SQLite (sqlite.org/rescode.html). */
const SQLITE_BUSY = 5;
const SQLITE_LOCKED = 6;
const SQLITE_CORRUPT = 11;
const SQLITE_NOTADB = 26;

/** What keeps the state; the one writer calls commit() after every command. */
export interface StateStore {
  /** The state as of the last commit, for the writer to own. */
  committed(): SystemData;
  /** Throws 'unavailable' when it could not be written: then nothing of it has happened, and committed() is the truth. */
  commit(system: SystemData): void;
}

interface Statements {
  readonly put: StatementSync;
  readonly remove: StatementSync;
}

export class Store implements StateStore, Disposable {
  readonly #path: string;
  readonly #database: DatabaseSync;
  readonly #statements: ReadonlyMap<EntityKind, Statements>;
  readonly #rows = new StoredRows();

  private constructor(path: string, database: DatabaseSync) {
    this.#path = path;
    this.#database = database;
    this.#statements = new Map(
      ENTITY_KINDS.map((kind) => [
        kind,
        {
          put: database.prepare(
            `INSERT INTO ${kind} (key, fields) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET fields = excluded.fields`,
          ),
          remove: database.prepare(`DELETE FROM ${kind} WHERE key = ?`),
        },
      ]),
    );
    this.#rows.take(this.#load());
  }

  /** Makes the file if there is none. Throws 'unavailable' when it is in use, of a newer release, or damaged. */
  static open(path: string): Store {
    let database: DatabaseSync | undefined;
    try {
      makeFile(path);
      database = new DatabaseSync(path);
      // Exclusive before the log is first touched: then there is no file of shared memory, and no second reader.
      database.exec(
        `PRAGMA locking_mode = EXCLUSIVE; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; BEGIN EXCLUSIVE; COMMIT`,
      );
      const check = database.prepare('PRAGMA quick_check(1)').get()?.['quick_check'];
      if (check !== 'ok') throw damaged(path, String(check));
      migrate(database, path);
      return new Store(path, database);
    } catch (error) {
      database?.close();
      throw explain(error, path);
    }
  }

  committed(): SystemData {
    return this.#rows.restore();
  }

  commit(system: SystemData): void {
    const { changes, undo } = this.#rows.take(system);
    if (changes.put.length + changes.remove.length === 0) return;
    try {
      this.#write(changes);
    } catch (error) {
      undo();
      const reason = error instanceof Error ? error.message : String(error);
      throw new SnowflockError(
        'unavailable',
        `sfmd could not write ${this.#path} (${reason}), so nothing was changed; is the disk full? Try again when there is room`,
        { cause: error },
      );
    }
  }

  /** How commits reach the disk, as SQLite has it. */
  durability(): { journal: unknown; synchronous: unknown; locking: unknown } {
    const pragma = (name: string): unknown =>
      Object.values(this.#database.prepare(`PRAGMA ${name}`).get() ?? {})[0];
    return {
      journal: pragma('journal_mode'),
      synchronous: pragma('synchronous'),
      locking: pragma('locking_mode'),
    };
  }

  /** The most that the file may grow to, in pages of 4 KiB; never less than it has. */
  limitPages(pages: number): void {
    this.#database.exec(`PRAGMA max_page_count = ${pages}`);
  }

  [Symbol.dispose](): void {
    if (this.#database.isOpen) this.#database.close();
  }

  #write({ put, remove }: RowChanges): void {
    this.#database.exec('BEGIN IMMEDIATE');
    try {
      for (const { kind, key, fields } of put) this.#of(kind).put.run(key, JSON.stringify(fields));
      for (const { kind, key } of remove) this.#of(kind).remove.run(key);
      this.#database.exec('COMMIT');
    } catch (error) {
      // SQLite may have rolled back by itself.
      if (this.#database.isTransaction) this.#database.exec('ROLLBACK');
      throw error;
    }
  }

  #of(kind: EntityKind): Statements {
    const statements = this.#statements.get(kind);
    if (!statements) throw new Error(`no table ${kind}`);
    return statements;
  }

  #load(): SystemData {
    const rows = ENTITY_KINDS.flatMap((kind) =>
      this.#database
        .prepare(`SELECT key, fields FROM ${kind}`)
        .all()
        .map(({ key, fields }) => ({ kind, fields: this.#parse(kind, String(key), String(fields)) })),
    );
    if (rows.length === 0) return createSystem({ hosts: [], clusterid: 0 });
    let system: SystemData;
    try {
      system = systemOf(rows);
    } catch (error) {
      throw damaged(this.#path, error instanceof Error ? error.message : String(error));
    }
    const wrong = brokenInvariants(system);
    if (wrong.length > 0) throw damaged(this.#path, wrong.slice(0, 3).join('; '));
    return system;
  }

  #parse(kind: EntityKind, key: string, fields: string): Record<string, unknown> {
    try {
      return STORED_ROWS[kind].parse(JSON.parse(fields));
    } catch (error) {
      throw damaged(
        this.#path,
        `row '${key}' of ${kind} is not what it must be (${String(error).slice(0, 200)})`,
      );
    }
  }
}

/** Mode 0600 from its first moment, and its name on the disk before anything is in it. */
function makeFile(path: string): void {
  mkdirSync(dirname(path), { recursive: true, mode: 0o700 });
  closeSync(openSync(path, 'a', 0o600));
  chmodSync(path, 0o600);
  const directory = openSync(dirname(path), 'r');
  fsyncSync(directory);
  closeSync(directory);
}

function migrate(database: DatabaseSync, path: string): void {
  const version = Number(database.prepare('PRAGMA user_version').get()?.['user_version']);
  if (version > MIGRATIONS.length)
    throw new SnowflockError(
      'unavailable',
      `${path} was written by a newer SnowFlock (format ${version}, this one knows up to ${MIGRATIONS.length}); start that release`,
    );
  for (const [index, sql] of MIGRATIONS.entries())
    if (index >= version) database.exec(`BEGIN; ${sql} PRAGMA user_version = ${index + 1}; COMMIT`);
}

function damaged(path: string, what: string): SnowflockError {
  return new SnowflockError(
    'unavailable',
    `${path} is damaged: ${what}. Bring it back from a copy; or move it away, and sfmd begins without clusters and has the VMs that hosts still run destroyed`,
  );
}

function explain(error: unknown, path: string): SnowflockError {
  if (error instanceof SnowflockError) return error;
  const code = (error as { errcode?: number }).errcode ?? 0;
  const reason = error instanceof Error ? error.message : String(error);
  switch (code & 0xff) {
    case SQLITE_BUSY:
    case SQLITE_LOCKED:
      return new SnowflockError(
        'unavailable',
        `${path} is in use by another process; does an sfmd with the same state_dir run already?`,
        { cause: error },
      );
    case SQLITE_CORRUPT:
    case SQLITE_NOTADB:
      return damaged(path, reason);
    default:
      return new SnowflockError(
        'unavailable',
        `${path} cannot be opened: ${reason}; check state_dir, its permissions and its free space`,
        { cause: error },
      );
  }
}

// How the file of the state came to look as it does: applied in order, each once, never edited after a release.
// The file says with `PRAGMA user_version` how many of them it has had.

/** Kinds of rows that version 1 has, one table each (packages/cluster/src/rows.ts says what is in them). */
const VERSION_1 = ['system', 'host', 'cluster', 'past', 'vm', 'ticket', 'waiting', 'cleanup'];

/**
 * Any VM of a cluster may fork: tickets have owners, until then always the master VM; and the memory that is held for a frozen image is
 * held on its owner's host, until then the master VM's, a row for each in place of their number.
 */
const OWNERS = `
  CREATE TABLE frozen (key TEXT PRIMARY KEY NOT NULL, fields TEXT NOT NULL) STRICT, WITHOUT ROWID;
  CREATE TEMP VIEW image AS
    SELECT fields ->> 'clusterid' AS clusterid, fields ->> 'ticket' AS ticket FROM ticket
    UNION SELECT fields ->> 'clusterid', fields ->> 'ticket' FROM cleanup
      WHERE fields ->> 'ticket' IS NOT NULL AND fields ->> 'host' =
        (SELECT vm.fields ->> 'host' FROM vm WHERE vm.key = (cleanup.fields ->> 'clusterid') || ':0');
  INSERT INTO frozen
    SELECT clusterid || '/' || ticket, json_object('clusterid', clusterid, 'ticket', ticket, 'host', vm.fields ->> 'host')
    FROM image JOIN vm ON vm.key = clusterid || ':0';
  DROP VIEW image;
  UPDATE cluster SET fields = json_remove(fields, '$.frozen');
  UPDATE ticket SET fields = json_set(fields, '$.owner', 0);
  UPDATE waiting SET fields = json_set(fields, '$.owner', 0);`;

export const MIGRATIONS: readonly string[] = [
  VERSION_1.map(
    (kind) =>
      `CREATE TABLE ${kind} (key TEXT PRIMARY KEY NOT NULL, fields TEXT NOT NULL) STRICT, WITHOUT ROWID;`,
  ).join('\n'),
  OWNERS,
  ...['checkpoint', 'migration'].map(
    (kind) =>
      `CREATE TABLE ${kind} (key TEXT PRIMARY KEY NOT NULL, fields TEXT NOT NULL) STRICT, WITHOUT ROWID;`,
  ),
];

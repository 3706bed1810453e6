import { mkdtempSync, readdirSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, it } from 'vitest';
import { silentLog } from '../src/log.ts';
import { Journal, type MasterEntry, type SourceEntry } from '../src/sfld/journal.ts';

const TICKET = '3d2f7a0e-58a1-4a0c-9a3e-0a2f4bb6a111';
const shape = { diskImage: 'micro', vcpus: 1, memoryMib: 96 };
const master: MasterEntry = {
  kind: 'master',
  clusterid: 3,
  shape,
  diskBytes: 0,
  process: { pid: 77, startTicks: 123456 },
  fork: null,
};
const source: SourceEntry = {
  kind: 'source',
  targets: ['h2'],
  pagesDirectory: null,
  ticket: TICKET,
  clusterid: 3,
  owner: 0,
  upstream: null,
  keyHex: 'ab'.repeat(32),
  memserver: null,
};

let stateDir: string;
const open = (): Journal => new Journal({ stateDir, log: silentLog() });
const file = (name: string): string => join(stateDir, 'sfld-journal', name);

beforeEach(() => {
  stateDir = mkdtempSync(join(tmpdir(), 'sf-journal-'));
});
afterEach(() => rmSync(stateDir, { recursive: true }));

it('gives the next sfld what the last one put in, and no more', () => {
  const journal = open();
  journal.put(source);
  journal.put({ ...master, process: null });
  journal.put(master);
  expect(open().entries).toEqual(expect.arrayContaining([master, source]));
  journal.remove(source);
  expect(open().entries).toEqual([master]);
  journal.remove({ ...master, fork: { ticket: TICKET, forkId: 7 } });
  expect(open().entries).toEqual([]);
  expect(readdirSync(join(stateDir, 'sfld-journal'))).toEqual(['boot']);
});

it('shows the keys of forks to nobody', () => {
  open().put(source);
  expect(statSync(file(`source-${TICKET}.json`)).mode & 0o777).toBe(0o600);
  expect(statSync(file('')).mode & 0o777).toBe(0o700);
});

it('remembers the accelerator until the machine is started again', () => {
  expect(open().accel).toBe(null);
  open().accel = 'tcg';
  expect(open().accel).toBe('tcg');
  writeFileSync(file('boot'), JSON.stringify({ id: 'another boot', accel: 'kvm' }));
  expect(open().accel).toBe(null);
});

it('forgets everything when the machine was started again', () => {
  open().put(master);
  writeFileSync(file('boot'), 'another boot');
  expect(open().entries).toEqual([]);
  expect(readdirSync(join(stateDir, 'sfld-journal'))).toEqual(['boot']);
});

it('drops what it cannot read: half a file, a file cut short, an entry of no known kind', () => {
  open().put(master);
  writeFileSync(file('master-4.json'), '{"kind":"master","clus');
  writeFileSync(file('master-5.json.new'), JSON.stringify({ ...master, clusterid: 5 }));
  writeFileSync(file('thing-6.json'), '{"kind":"thing"}');
  expect(open().entries).toEqual([master]);
  expect(readdirSync(join(stateDir, 'sfld-journal')).sort()).toEqual(['boot', 'master-3.json']);
});

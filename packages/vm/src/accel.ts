// Choosing the accelerator by measuring. /dev/kvm may be there and yet run guest code slower than emulation does (nested or
// software-backed KVM), so a guest of a few instructions is timed on it: a boot ROM that counts in memory.

import { spawn } from 'node:child_process';
import { access, constants, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { SnowflockError } from '@snowflock/protocol';
import { within } from './deadline.ts';
import type { Accel } from './qemu-args.ts';
import { Qmp } from './qmp.ts';

/** Real hardware does several hundred million rounds a second, emulation tens of millions, a KVM not worth using about one. */
const ROUNDS_PER_SECOND_MIN = 50e6;
const MEASURE_MS = 300;
const PROBE_TIMEOUT_MS = 5_000;
const COUNTER_ADDRESS = 0x500;

export interface AccelProbe {
  readonly kvm: { readonly present: boolean; readonly usable: boolean; readonly why: string };
  readonly chosen: Accel;
}

/**
 * Real-mode code at the reset vector: puts `again: inc dword [0x500]; jmp again` into RAM at 0x600 and runs it there, so that
 * a clone needs no firmware (QEMU leaves a clone's ROM empty, expecting it with the RAM).
 */
export function countingRom(): Buffer {
  const rom = Buffer.alloc(65536, 0x90);
  const code = [
    [0x31, 0xc0], // xor ax, ax
    [0x8e, 0xd8], // mov ds, ax
    [0x66, 0xc7, 0x06, 0x00, 0x06, 0x66, 0xff, 0x06, 0x00], // mov dword [0x600], first four bytes of the loop
    [0x66, 0xc7, 0x06, 0x04, 0x06, 0x05, 0xeb, 0xf9, 0x90], // mov dword [0x604], the rest
    [0xea, 0x00, 0x06, 0x00, 0x00], // jmp 0:0x600
  ];
  Buffer.from(code.flat()).copy(rom, 0);
  Buffer.from([0xea, 0x00, 0x00, 0x00, 0xf0]).copy(rom, 0xfff0); // jmp 0xf000:0
  return rom;
}

async function readCounter(qmp: Qmp): Promise<number> {
  const text = await qmp.execute({
    execute: 'human-monitor-command',
    arguments: { 'command-line': `xp /1wx ${COUNTER_ADDRESS}` },
  });
  const match = /: (0x[0-9a-f]+)/.exec(String(text));
  if (!match) throw new SnowflockError('internal', `QEMU printed '${String(text)}' for a memory word`);
  return Number(match[1]);
}

/** Rounds a second of the counting guest. The counter wraps at 2^32, far beyond what any machine counts in the interval. */
export async function measureAccel(accel: Accel): Promise<number> {
  const directory = await mkdtemp(join(tmpdir(), 'sf-accel-'));
  try {
    const rom = join(directory, 'rom');
    await writeFile(rom, countingRom());
    const cpu = accel === 'kvm' ? 'host,-arch-capabilities' : 'max';
    const child = spawn(
      'qemu-system-x86_64',
      [
        '-M',
        'pc',
        '-accel',
        accel,
        '-cpu',
        cpu,
        '-m',
        '64',
        '-bios',
        rom,
        '-display',
        'none',
        '-nodefaults',
      ].concat(['-qmp', `unix:${directory}/qmp,server=on,wait=off`]),
      { stdio: ['ignore', 'ignore', 'pipe'] },
    );
    let said = '';
    child.stderr.on('data', (chunk: Buffer) => (said = (said + chunk.toString()).slice(-500)));
    const gone = new Promise<void>((resolve) => {
      child.once('exit', () => resolve());
      child.once('error', (error) => {
        said = error.message;
        resolve();
      });
    });
    try {
      const qmp = await Qmp.connect(`${directory}/qmp`, { timeoutMs: PROBE_TIMEOUT_MS, gone });
      const before = await readCounter(qmp);
      const begin = performance.now();
      await sleep(MEASURE_MS);
      const after = await readCounter(qmp);
      return ((after - before) * 1000) / (performance.now() - begin);
    } catch (error) {
      throw said ? new SnowflockError('unavailable', said.trim(), { cause: error }) : error;
    } finally {
      child.kill('SIGKILL');
      await within(gone, PROBE_TIMEOUT_MS, 'the end of the accelerator probe');
    }
  } finally {
    await rm(directory, { recursive: true, force: true });
  }
}

/** `auto` measures; `kvm` and `tcg` are taken at their word. */
export async function chooseAccel(wanted: 'auto' | Accel): Promise<AccelProbe> {
  if (wanted !== 'auto')
    return {
      kvm: { present: wanted === 'kvm', usable: wanted === 'kvm', why: 'set by configuration' },
      chosen: wanted,
    };
  try {
    await access('/dev/kvm', constants.R_OK | constants.W_OK);
  } catch {
    // Absent or not permitted: an answer, not an error.
    return {
      kvm: { present: false, usable: false, why: '/dev/kvm is absent or not accessible' },
      chosen: 'tcg',
    };
  }
  try {
    const rounds = await measureAccel('kvm');
    const usable = rounds >= ROUNDS_PER_SECOND_MIN;
    const why = `${(rounds / 1e6).toFixed(1)} million rounds a second of the counting guest, usable from ${ROUNDS_PER_SECOND_MIN / 1e6}`;
    return { kvm: { present: true, usable, why }, chosen: usable ? 'kvm' : 'tcg' };
  } catch (error) {
    const why = error instanceof Error ? error.message : String(error);
    return { kvm: { present: true, usable: false, why }, chosen: 'tcg' };
  }
}

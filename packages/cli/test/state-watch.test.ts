import { EventEmitter } from 'node:events';
import { describe, expect, it } from 'vitest';
import type { SystemState } from '@snowflock/protocol';
import { stateChanges } from '../src/state-changes.ts';
import { watchState } from '../src/state-watch.ts';

const HOST = {
  ...{ host: 'host1', address: '10.0.0.1', sfldPort: 1, up: true, accel: 'tcg' as const },
  ...{ cpus: 4, cpusFree: 3, ramBytes: 2 ** 30, ramFreeBytes: 2 ** 29, vms: 1 },
};
const SHAPE = { diskImage: 'micro', vcpus: 1, memoryMib: 64 };
type Vm = SystemState['clusters'][number]['vms'][number];
const vm = (vmid: number, changes: Partial<Vm> = {}): Vm => ({
  ...{ vmid, status: 'running', host: 'host1', vcpus: 1, memoryMib: 64, ip: `10.0.0.${vmid + 1}` },
  ...{ ticket: null, reason: null },
  ...changes,
});
const systemOf = (...vms: Vm[]): SystemState => ({
  hosts: [HOST],
  clusters: [{ clusterid: 0, shape: SHAPE, vms, tickets: [] }],
});

class Output extends EventEmitter {
  text = '';
  isTTY = false;
  columns = 80;
  rows = 24;
  write(text: string): boolean {
    this.text += text;
    return true;
  }
}

/** Looks through `looks` one after the other, then is interrupted. */
async function watched(
  looks: (SystemState | Error)[],
  { tty = false, json = false, rows = 24 }: { tty?: boolean; json?: boolean; rows?: number } = {},
): Promise<Output> {
  const output = new Output();
  output.isTTY = tty;
  output.rows = rows;
  const abort = new AbortController();
  const left = [...looks];
  const look = async (): Promise<SystemState> => {
    const next = left.shift();
    if (left.length === 0) abort.abort();
    if (next === undefined || next instanceof Error) throw next ?? new Error('one look too many');
    return next;
  };
  await watchState(look, { output, json, signal: abort.signal, intervalMs: 1 });
  expect(output.listenerCount('resize')).toBe(0);
  return output;
}

describe('changes between two states', () => {
  it('are one line for each thing that is new, different, or gone', () => {
    expect(stateChanges(null, systemOf(vm(0)))).toEqual([
      'host host1: up, 3/4 CPUs and 512M/1G free, 1 VM',
      'cluster 0: micro',
      'vm 0:0: running on host1, 10.0.0.1',
    ]);
    const after = systemOf(vm(0), vm(1, { status: 'lost', reason: 'killed' }));
    expect(stateChanges(systemOf(vm(0)), after)).toEqual(['vm 0:1: lost on host1, 10.0.0.2: killed']);
    expect(stateChanges(after, systemOf(vm(0)))).toEqual(['vm 0:1: gone']);
    expect(stateChanges(after, after)).toEqual([]);
  });
});

describe('sfstate --watch', () => {
  it('into a pipe prints what changed, with the time, and that it could not ask, once', async () => {
    const trouble = new Error('nobody answers');
    const { text } = await watched([systemOf(vm(0)), trouble, trouble, systemOf(vm(0)), systemOf()]);
    const lines = text.trimEnd().split('\n');
    for (const line of lines) expect(line).toMatch(/^\d{4}-\d\d-\d\dT[\d:.]+Z /);
    expect(lines.map((line) => line.slice(25))).toEqual([
      'host host1: up, 3/4 CPUs and 512M/1G free, 1 VM',
      'cluster 0: micro',
      'vm 0:0: running on host1, 10.0.0.1',
      'the state cannot be asked for: nobody answers',
      'the state can be asked for again',
      'vm 0:0: gone',
    ]);
    expect(text).not.toContain('\x1b');
  });

  it('with --json prints the whole state at every change, and only then', async () => {
    const { text } = await watched([systemOf(vm(0)), systemOf(vm(0)), systemOf(vm(0), vm(1))], {
      json: true,
    });
    const states = text
      .trimEnd()
      .split('\n')
      .map((line) => JSON.parse(line) as SystemState);
    expect(states).toEqual([systemOf(vm(0)), systemOf(vm(0), vm(1))]);
  });

  it('draws a terminal anew at a change, says when it shows something old, and gives the cursor back', async () => {
    const { text } = await watched([systemOf(vm(0)), new Error('cable pulled'), systemOf(vm(0), vm(1))], {
      tty: true,
    });
    expect(text.startsWith('\x1b[?1049h\x1b[?25l\x1b[Hsfstate: since ')).toBe(true);
    expect(text).toContain('this is OLD; cable pulled');
    expect(text).toContain('0:1  running');
    expect(text.endsWith('\x1b[?25h\x1b[?1049l')).toBe(true);
  });

  it('gives the cursor back when something fails, and shows no more lines than there are', async () => {
    const many = systemOf(...Array.from({ length: 60 }, (_, vmid) => vm(vmid)));
    const { text } = await watched([many, many], { tty: true, rows: 10 });
    const screen = text.slice(text.indexOf('\x1b[H') + 3).split('\x1b[J')[0] ?? '';
    expect(screen.split('\r\n')).toHaveLength(10);
    expect(screen).toMatch(/\.\.\. and 5\d more lines/);
    const output = new Output();
    output.isTTY = true;
    const broken = Object.assign(output, {
      write(chunk: string) {
        output.text += chunk;
        if (chunk.startsWith('\x1b[H')) throw new Error('the terminal is gone');
      },
    });
    const { signal } = new AbortController();
    const watching = watchState(async () => many, { output: broken, json: false, signal, intervalMs: 1 });
    await expect(watching).rejects.toThrow('the terminal is gone');
    expect(output.text.endsWith('\x1b[?25h\x1b[?1049l')).toBe(true);
  });

  it('fails at once when there is nobody to ask', async () => {
    await expect(watched([new Error('no sfld runs here')])).rejects.toThrow('no sfld runs here');
  });
});

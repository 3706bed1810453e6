// What the integration tests share: compiled helpers, a snapshot stand-in, memservers and memtaps, and their end.

import { execFileSync, spawn, type ChildProcess } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { mkdirSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { MemserverProcess, type FreezeResult, MemtapProcess } from '../src/index.ts';

export interface FaultResult {
  readonly pages: number;
  readonly wrong: number;
  readonly minUs: number;
  readonly medianUs: number;
  readonly p90Us: number;
  readonly p99Us: number;
  readonly maxUs: number;
  readonly totalMs: number;
  readonly mbPerS: number;
}

export interface Exit {
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
  readonly stdout: string;
}

export class Harness implements AsyncDisposable {
  readonly directory = mkdtempSync(join(tmpdir(), 'snowflock-replication-'));
  readonly #disposables = new AsyncDisposableStack();
  #serial = 0;

  constructor() {
    for (const name of ['frozen-source', 'fault-client'])
      execFileSync('gcc', [
        '-O2',
        '-Wall',
        '-Werror',
        '-o',
        join(this.directory, name),
        join(import.meta.dirname, `${name}.c`),
      ]);
    this.#disposables.defer(() => rmSync(this.directory, { recursive: true, force: true }));
  }

  path(name: string): string {
    return join(this.directory, name);
  }

  defer(cleanup: () => void | Promise<void>): void {
    this.#disposables.defer(cleanup);
  }

  async memserver(options: {
    key: Buffer;
    multicastAddress?: string;
    needs?: Buffer | undefined;
    listenAddress?: string;
    orphanMs?: number;
  }): Promise<MemserverProcess> {
    const name = `memserver${this.#serial++}`;
    const { key, multicastAddress, needs, ...rest } = options;
    const memserver = await MemserverProcess.start({
      controlPath: this.path(`${name}.control`),
      leasePath: this.path(`${name}.lease`),
      listenAddress: '127.0.0.1',
      logPath: this.path(`${name}.log`),
      ...rest,
    });
    this.defer(() => memserver.stop());
    await memserver.configure({ key, multicastAddress, needs });
    return memserver;
  }

  async memtap(options: {
    pages: number;
    diskBytes?: number;
    orphanMs?: number;
    sourceTimeoutMs?: number;
    compress?: boolean;
  }): Promise<MemtapProcess> {
    const name = `memtap${this.#serial++}`;
    const { pages, ...rest } = options;
    const mountPath = this.path(`${name}.mount`);
    mkdirSync(mountPath);
    const memtap = await MemtapProcess.start({
      controlPath: this.path(`${name}.control`),
      mountPath,
      ramBytes: pages * 4096,
      logPath: this.path(`${name}.log`),
      ...rest,
    });
    this.defer(() => memtap.stop());
    return memtap;
  }

  /** A process that looks like a frozen QEMU to the memserver. */
  async source(options: {
    leasePath: string;
    pages: number;
    seed: number;
    kind: 'mixed' | 'dense';
    /** It is a clone: its memory is a private mapping of this file, of which it has written every third page. */
    over?: string;
  }): Promise<SourceProcess> {
    const { leasePath, pages, seed, over } = options;
    const kind = over === undefined ? [options.kind] : ['over', over];
    const args = [leasePath, String(pages), String(seed), ...kind];
    const child = spawn(this.path('frozen-source'), args, { stdio: ['ignore', 'pipe', 'inherit'] });
    this.defer(() => void child.kill('SIGKILL'));
    const line = await new Promise<string>((resolve, reject) => {
      child.stdout.once('data', (chunk: Buffer) => resolve(chunk.toString()));
      child.once('exit', (code) => reject(new Error(`frozen-source ended with ${code ?? 'a signal'}`)));
    });
    const [pid, start] = line.trim().split(' ');
    return { child, pid: Number(pid), ranges: [{ start: start ?? '', length: options.pages * 4096 }] };
  }

  /** Everything from a source to an attached memtap. */
  async stack(options: { pages: number; kind: 'mixed' | 'dense'; sourceTimeoutMs?: number }): Promise<Stack> {
    const key = randomBytes(32);
    const seed = 7 + 2 * this.#serial;
    const memserver = await this.memserver({ key });
    const source = await this.source({ leasePath: memserver.leasePath, seed, ...options });
    const frozen = await memserver.freeze({ pid: source.pid, ramRanges: source.ranges });
    const memtap = await this.memtap(options);
    await memtap.attach({
      sources: [{ address: '127.0.0.1', port: memserver.port }],
      key,
      presence: frozen.presence,
    });
    return { key, seed, memserver, source, frozen, memtap };
  }

  /** Starts a fault client; `done` resolves with its end. */
  startFaults(args: readonly (string | number)[]): { child: ChildProcess; done: Promise<Exit> } {
    const child = spawn(this.path('fault-client'), args.map(String), {
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    let stdout = '';
    child.stdout.on('data', (chunk: Buffer) => (stdout += chunk.toString()));
    const done = new Promise<Exit>((resolve) =>
      child.on('close', (code, signal) => resolve({ code, signal, stdout })),
    );
    return { child, done };
  }

  async faults(args: readonly (string | number)[]): Promise<FaultResult> {
    const { code, signal, stdout } = await this.startFaults(args).done;
    if (code !== 0) throw new Error(`fault-client ${args.join(' ')}: ${signal ?? code ?? ''} ${stdout}`);
    return JSON.parse(stdout) as FaultResult;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#disposables.disposeAsync();
  }
}

export interface SourceProcess {
  readonly child: ChildProcess;
  readonly pid: number;
  readonly ranges: readonly { start: string; length: number }[];
}

export interface Stack {
  readonly key: Buffer;
  readonly seed: number;
  readonly memserver: MemserverProcess;
  readonly source: SourceProcess;
  readonly frozen: FreezeResult;
  readonly memtap: MemtapProcess;
}

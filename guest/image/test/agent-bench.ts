// The agent on a plain host: built from guest/c, connected to a unix socket where the test plays sfld.

import { execFileSync, spawn, type ChildProcess } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { connect, createServer, type Server, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll } from 'vitest';
import { HostSide } from './host-side.ts';

const GUEST = join(import.meta.dirname, '../..');
const COMPILE_TIMEOUT_MS = 120_000;

/** Compiles the guest's programs once for the tests of a file; `directory` is there while they run. */
export function guestTools({ able }: { able: boolean }): { readonly directory: string } {
  const tools = { directory: '' };
  beforeAll(() => {
    if (!able) return;
    tools.directory = mkdtempSync(join(tmpdir(), 'sf-tools-'));
    const make = ['-s', '-C', join(GUEST, 'c'), '-j4', `O=${tools.directory}`, 'all'];
    execFileSync('make', make, { stdio: 'pipe' });
  }, COMPILE_TIMEOUT_MS);
  afterAll(() => {
    if (able) rmSync(tools.directory, { recursive: true, force: true });
  });
  return tools;
}

export interface Finished {
  readonly status: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

export class AgentBench implements AsyncDisposable {
  readonly #tools: string;
  readonly #directory: string;
  readonly #server: Server;
  readonly #agent: ChildProcess;
  readonly #arrivals: Socket[] = [];
  #wake: (() => void) | undefined;
  #log = '';
  host!: HostSide;

  private constructor(tools: string) {
    this.#tools = tools;
    this.#directory = mkdtempSync(join(tmpdir(), 'sf-agent-'));
    this.#server = createServer((socket) => {
      this.#arrivals.push(socket);
      this.#wake?.();
    });
    this.#server.listen(join(this.#directory, 'port'));
    this.#agent = spawn(
      join(tools, 'sfagent'),
      [
        '--no-identity',
        ...['--port', join(this.#directory, 'port'), '--socket', this.socketPath, '--hooks', this.hooks],
      ],
      { stdio: ['ignore', 'ignore', 'pipe'] },
    );
    this.#agent.stderr!.on('data', (chunk: Buffer) => (this.#log += chunk.toString()));
  }

  /** With HELLO taken; with `identity`, also told who it is. */
  static async start(tools: string, identity?: string): Promise<AgentBench> {
    const bench = new AgentBench(tools);
    await bench.accept();
    if (identity !== undefined) {
      bench.host.send('identity', 0, identity);
      await bench.host.next('identified');
    }
    return bench;
  }

  /** Where it looks for hooks; not there at first. */
  get hooks(): string {
    return join(this.#directory, 'clone.d');
  }

  get socketPath(): string {
    return join(this.#directory, 'agent.sock');
  }

  get log(): string {
    return this.#log;
  }

  get running(): boolean {
    return this.#agent.exitCode === null && this.#agent.signalCode === null;
  }

  /** Waits for the agent to connect (again) and say HELLO. */
  async accept(): Promise<string> {
    const deadline = Date.now() + 10_000;
    while (this.#arrivals.length === 0) {
      if (Date.now() > deadline) throw new Error(`the agent did not connect; it said: ${this.#log}`);
      await new Promise<void>((resolve) => {
        const timer = setTimeout(resolve, 200);
        this.#wake = () => {
          clearTimeout(timer);
          resolve();
        };
      });
    }
    this.host = new HostSide(this.#arrivals.shift()!);
    return (await this.host.next('hello')).payload.toString();
  }

  /** Runs a program against this agent. */
  run(
    program: string,
    args: readonly string[],
    more: { env?: Record<string, string> } = {},
  ): Promise<Finished> {
    return this.start(program, args, more).done;
  }

  start(
    program: string,
    args: readonly string[],
    more: { env?: Record<string, string> } = {},
  ): { child: ChildProcess; done: Promise<Finished> } {
    const path = program.includes('/') ? program : join(this.#tools, program);
    const env = { ...process.env, SNOWFLOCK_AGENT_SOCKET: this.socketPath, ...more.env };
    const child = spawn(path, [...args], { env, stdio: ['ignore', 'pipe', 'pipe'] });
    let stdout = '';
    let stderr = '';
    child.stdout.on('data', (chunk: Buffer) => (stdout += chunk.toString()));
    child.stderr.on('data', (chunk: Buffer) => (stderr += chunk.toString()));
    const done = new Promise<Finished>((resolve, reject) => {
      child.once('error', reject);
      child.once('close', (status) => resolve({ status, stdout, stderr }));
    });
    return { child, done };
  }

  /** Runs a program, answering its calls in order; also gives the calls it made, as it made them. */
  async answering(
    replies: readonly string[],
    program: string,
    args: readonly string[],
  ): Promise<Finished & { calls: string[] }> {
    const calls: string[] = [];
    const { done } = this.start(program, args);
    for (const reply of replies) {
      const call = await this.host.nextCall();
      calls.push(asAsked(call.text));
      this.host.send('reply', call.id, reply);
    }
    return { ...(await done), calls };
  }

  python(code: string, ...args: string[]): [string, string[]] {
    return [
      '/usr/bin/env',
      [`PYTHONPATH=${join(GUEST, 'python')}`, 'PYTHONDONTWRITEBYTECODE=1', 'python3', '-c', code, ...args],
    ];
  }

  killAgent(): void {
    this.#agent.kill('SIGKILL');
  }

  /** A raw connection to the agent socket. */
  client(): LineClient {
    return new LineClient(connect(this.socketPath));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const gone = this.running ? new Promise((resolve) => this.#agent.once('exit', resolve)) : undefined;
    this.#agent.kill('SIGKILL');
    await gone;
    this.host.close();
    for (const socket of this.#arrivals) socket.destroy();
    await new Promise((resolve) => this.#server.close(resolve));
    rmSync(this.#directory, { recursive: true, force: true });
  }
}

export class LineClient {
  readonly #socket: Socket;
  #text = '';
  #wake: (() => void) | undefined;
  ended = false;

  constructor(socket: Socket) {
    this.#socket = socket;
    socket.on('data', (chunk: Buffer) => {
      this.#text += chunk.toString();
      this.#wake?.();
    });
    const end = (): void => {
      this.ended = true;
      this.#wake?.();
    };
    socket.on('end', end);
    socket.on('error', end);
  }

  write(text: string | Buffer): void {
    this.#socket.write(text);
  }

  /** The next line, or undefined at the end of the connection. */
  async line(timeoutMs = 15_000): Promise<string | undefined> {
    const deadline = Date.now() + timeoutMs;
    for (;;) {
      const end = this.#text.indexOf('\n');
      if (end >= 0) {
        const line = this.#text.slice(0, end);
        this.#text = this.#text.slice(end + 1);
        return line;
      }
      if (this.ended) return undefined;
      if (Date.now() > deadline) throw new Error(`no line within ${timeoutMs} ms`);
      await new Promise<void>((resolve) => {
        const timer = setTimeout(resolve, 100);
        this.#wake = () => {
          clearTimeout(timer);
          resolve();
        };
      });
    }
  }

  close(): void {
    this.#socket.destroy();
  }
}

/** Without the id by which the agent knows a request for a ticket again (docs/guest-channel.md). */
export function asAsked(call: string): string {
  return call.replace(/^(request_clone_ticket(?: \S+){4}) [0-9a-f-]{36}$/, '$1');
}

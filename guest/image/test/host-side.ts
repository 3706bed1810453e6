// sfld's end of the guest channel, played by a test.

import type { Socket } from 'node:net';
import {
  CALL_WINDOW_BYTES,
  encodeGuestFrame,
  encodeIdentity,
  GuestFrameDecoder,
  GuestFrameType,
  GUEST_PAYLOAD_MAX,
  type GuestFrame,
  type GuestIdentity,
} from '@snowflock/protocol';

export type FrameName = keyof typeof GuestFrameType;

export interface ExecResult {
  readonly status: number;
  readonly stdout: string;
  readonly stderr: string;
}

const BOOT_IDENTITY: GuestIdentity = {
  clusterid: 7,
  vmid: 0,
  nclones: 0,
  hostname: 'master',
  ip: '10.0.0.1',
  prefix: 24,
  mac: '52:54:00:00:00:01',
  mtu: 1400,
  timeNs: 0n,
  entropy: Buffer.alloc(64, 1),
};

export function testIdentity(changes: Partial<GuestIdentity> = {}): string {
  return encodeIdentity({ ...BOOT_IDENTITY, timeNs: BigInt(Date.now()) * 1_000_000n, ...changes });
}

export class HostSide {
  readonly socket: Socket;
  readonly #decoder = new GuestFrameDecoder();
  readonly #frames: GuestFrame[] = [];
  readonly #waiters = new Set<() => void>();
  #session = 1;

  constructor(socket: Socket) {
    this.socket = socket;
    socket.on('data', (chunk: Buffer) => {
      this.#frames.push(...this.#decoder.push(chunk));
      this.#wakeAll();
    });
    socket.on('error', () => this.#wakeAll());
  }

  send(type: FrameName, id: number, payload?: Buffer | string): void {
    this.socket.write(
      encodeGuestFrame({ type: GuestFrameType[type], id, ...(payload !== undefined && { payload }) }),
    );
  }

  /** The bytes that follow a call, with credit granted as they come. */
  async callData(id: number, sizeBytes: number): Promise<Buffer> {
    const parts: Buffer[] = [];
    for (let left = sizeBytes; left > 0;) {
      const { payload } = await this.next('callData', 15_000, id);
      parts.push(payload);
      left -= payload.length;
      this.grant(id, payload.length, 'callCredit');
    }
    return Buffer.concat(parts);
  }

  /** The bytes that follow a reply, as far as the agent grants credit. */
  async replyData(id: number, bytes: Buffer): Promise<void> {
    let credit = CALL_WINDOW_BYTES;
    for (let at = 0; at < bytes.length;) {
      while (this.waiting('callCredit') > 0 || credit === 0)
        credit += (await this.next('callCredit', 15_000, id)).payload.readUInt32LE(0);
      const part = bytes.subarray(at, at + Math.min(credit, GUEST_PAYLOAD_MAX));
      this.send('replyData', id, part);
      at += part.length;
      credit -= part.length;
    }
  }

  /** Takes the first waiting frame of that type (and id), waiting for it if need be; others stay. */
  async next(type: FrameName, timeoutMs = 15_000, id?: number): Promise<GuestFrame> {
    const wanted = (f: GuestFrame): boolean =>
      f.type === GuestFrameType[type] && (id === undefined || f.id === id);
    return this.#take(wanted, timeoutMs, `${type} frame`);
  }

  /** Frames of that type that have come and were not taken. */
  waiting(type: FrameName): number {
    return this.#frames.filter((f) => f.type === GuestFrameType[type]).length;
  }

  async nextCall(timeoutMs = 15_000): Promise<{ id: number; text: string }> {
    const frame = await this.next('call', timeoutMs);
    return { id: frame.id, text: frame.payload.toString() };
  }

  startExec(argv: readonly string[]): number {
    const id = this.#session++;
    this.send('execStart', id, argv.map((arg) => `${arg}\0`).join(''));
    return id;
  }

  /** Collects what a session writes, granting credit, until it exits. */
  async finishExec(id: number, timeoutMs = 20_000): Promise<ExecResult> {
    const out: Buffer[][] = [[], [], []];
    const ofSession = (f: GuestFrame): boolean =>
      f.id === id && (f.type === GuestFrameType.execOut || f.type === GuestFrameType.execExit);
    for (;;) {
      const frame = await this.#take(ofSession, timeoutMs, `end of exec session ${id}`);
      if (frame.type === GuestFrameType.execExit)
        return {
          status: frame.payload.readInt32LE(0),
          stdout: Buffer.concat(out[1]!).toString(),
          stderr: Buffer.concat(out[2]!).toString(),
        };
      const data = frame.payload.subarray(1);
      out[frame.payload[0]!]!.push(data);
      if (data.length > 0) this.grant(id, data.length);
    }
  }

  grant(id: number, bytes: number, type: 'execCredit' | 'callCredit' = 'execCredit'): void {
    const credit = Buffer.alloc(4);
    credit.writeUInt32LE(bytes);
    this.send(type, id, credit);
  }

  async exec(argv: readonly string[], stdin?: string): Promise<ExecResult> {
    const id = this.startExec(argv);
    if (stdin) this.send('execIn', id, stdin);
    this.send('execIn', id);
    return this.finishExec(id);
  }

  async #take(wanted: (frame: GuestFrame) => boolean, timeoutMs: number, what: string): Promise<GuestFrame> {
    const end = Date.now() + timeoutMs;
    for (;;) {
      const at = this.#frames.findIndex(wanted);
      const [frame] = at < 0 ? [] : this.#frames.splice(at, 1);
      if (frame) return frame;
      const left = end - Date.now();
      if (left <= 0)
        throw new Error(
          `no ${what} within ${timeoutMs} ms; types waiting: ${this.#frames.map((f) => f.type).join(' ')}`,
        );
      await new Promise<void>((resolve) => {
        const done = (): void => {
          clearTimeout(timer);
          this.#waiters.delete(done);
          resolve();
        };
        const timer = setTimeout(done, left);
        this.#waiters.add(done);
      });
    }
  }

  #wakeAll(): void {
    for (const wake of [...this.#waiters]) wake();
  }

  close(): void {
    this.socket.destroy();
  }
}

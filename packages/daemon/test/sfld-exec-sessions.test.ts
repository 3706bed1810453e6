// Exec sessions over sockets as an HTTP server hands them out, before a guest's end that is a socket, too: clients that go, a channel that is
// held, and sessions that go to another host with their VM.

import { once } from 'node:events';
import { connect, createServer, type Socket } from 'node:net';
import {
  encodeGuestFrame,
  GuestFrameDecoder,
  GuestFrameType as Type,
  SnowflockError,
  type GuestFrame,
} from '@snowflock/protocol';
import { AgentLink } from '@snowflock/vm';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import type { LetGo } from '../src/sfld/client-relay.ts';
import { ExecSessions } from '../src/sfld/exec-sessions.ts';
import { joinConnections } from '../src/join-connections.ts';
import { UnixListeners } from './unix-listeners.ts';

const SESSION = 7;
const FORK = 9;
const HOLD_MS = 5000;
const SIGHUP = 1;

/** One end of a connection that carries frames. */
class Frames {
  readonly socket: Socket;
  readonly #got: GuestFrame[] = [];

  constructor(socket: Socket) {
    this.socket = socket;
    const decoder = new GuestFrameDecoder();
    socket.on('data', (chunk: Buffer) => this.#got.push(...decoder.push(chunk))).on('error', () => undefined);
  }

  send(type: Type, id: number, payload: Buffer | string = ''): void {
    this.socket.write(encodeGuestFrame({ type, id, payload }));
  }

  output(id: number, text: string): void {
    this.send(Type.execOut, id, `\x01${text}`);
  }

  /** All that came so far, as `type id text`, once there are so many. */
  async got(count: number): Promise<string[]> {
    await vi.waitFor(() => expect(this.#got.length).toBeGreaterThanOrEqual(count));
    return this.#got.map(({ type, id, payload }) => `${type} ${id} ${payload.toString('latin1')}`);
  }
}

describe('exec sessions', () => {
  let sockets: UnixListeners;
  beforeEach(() => {
    sockets = new UnixListeners();
  });
  afterEach(() => sockets[Symbol.asyncDispose]());

  /** Both ends of a connection; the first as an HTTP server has it. */
  async function pair(): Promise<[Socket, Socket]> {
    const server = createServer({ allowHalfOpen: true });
    const path = await sockets.listening(server);
    const accepted = once(server, 'connection') as Promise<[Socket]>;
    const client = connect(path);
    sockets.defer(() => void client.destroy());
    return [(await accepted)[0], client];
  }

  /** A host with a VM. */
  async function host(): Promise<{ sessions: ExecSessions; link: AgentLink; guest: Frames }> {
    const server = createServer();
    const accepted = once(server, 'connection') as Promise<[Socket]>;
    const path = await sockets.listening(server);
    const link = await AgentLink.connect(path, { timeoutMs: 2000, gone: new Promise(() => undefined) });
    sockets.defer(() => link.close());
    const sessions = new ExecSessions(link);
    link.on('frame', (frame) => sessions.fromGuest(frame));
    link.once('close', () => sessions.closeAll());
    return { sessions, link, guest: new Frames((await accepted)[0]) };
  }

  async function client(sessions: ExecSessions, token?: string): Promise<Frames> {
    const [served, own] = await pair();
    sessions.serve(served, token);
    return new Frames(own);
  }

  /** As a fork or a migration does. */
  async function hold({ link, guest }: Awaited<ReturnType<typeof host>>): Promise<void> {
    const held = link.hold(FORK, HOLD_MS);
    guest.send(Type.held, FORK);
    await held;
  }

  it('leave no connection behind when their client goes', async () => {
    const { sessions, guest } = await host();
    const [served, own] = await pair();
    sessions.serve(served);
    own.write(encodeGuestFrame({ type: Type.execStart, id: SESSION, payload: 'true\0' }));
    await guest.got(1);
    own.destroy();
    await vi.waitFor(() => expect(served.destroyed).toBe(true));
    expect(await guest.got(3)).toEqual([
      `${Type.execStart} 1 true\0`,
      `${Type.execSignal} 1 ${String.fromCharCode(SIGHUP)}`,
      `${Type.execIn} 1 `,
    ]);
  });

  it('end every client with the channel, also one that runs nothing', async () => {
    const { sessions, link } = await host();
    const { socket } = await client(sessions);
    link.close();
    await once(socket, 'close');
  });

  it('read no client while the channel is held, and lose nothing', async () => {
    const one = await host();
    const { sessions, link, guest } = one;
    const early = await client(sessions);
    early.send(Type.execStart, SESSION, 'cat\0');
    await guest.got(1);
    await hold(one);
    const late = await client(sessions);
    late.send(Type.execStart, SESSION, 'id\0');
    for (let i = 0; i < 5000; i++) early.send(Type.execIn, SESSION, String(i));
    await new Promise((resolve) => setTimeout(resolve, 50));
    expect(link.heldFrames).toHaveLength(0);
    link.release();
    const got = await guest.got(2 + 5000 + 1);
    expect(got.filter((line) => line.startsWith(`${Type.execIn} 1 `))).toEqual(
      Array.from({ length: 5000 }, (_, i) => `${Type.execIn} 1 ${i}`),
    );
    expect(got).toContain(`${Type.execStart} 2 id\0`);
  });

  it('go to another host with their VM, half a frame and early output included', async () => {
    const [from, to] = [await host(), await host()];
    const [busy, idle] = [await client(from.sessions), await client(from.sessions)];
    busy.send(Type.execStart, SESSION, 'cat\0');
    await from.guest.got(1);
    from.guest.output(1, 'before');
    const half = encodeGuestFrame({ type: Type.execIn, id: SESSION, payload: 'halved' });
    busy.socket.write(half.subarray(0, 14));
    await busy.got(1);
    await new Promise((resolve) => setTimeout(resolve, 20));
    await hold(from);
    busy.socket.write(half.subarray(14));
    const state = from.sessions.handOver();
    expect(state).toMatchObject({ execIds: 1, execClients: [{ sessions: [[SESSION, 1]] }] });
    to.sessions.expect(state);
    to.guest.output(1, 'early');
    const left: LetGo[] = [];
    from.sessions.letGo((client) => left.push(client));
    const late = await client(from.sessions);
    from.link.close();
    expect(left.map(({ token }) => token)).toEqual([state.execClients[0]?.token, null, null]);
    for (const { connection, rest, token } of left) {
      const [served, remote] = await pair();
      to.sessions.serve(served, token);
      remote.write(rest);
      void joinConnections(connection, remote);
    }
    to.guest.output(1, 'after');
    expect(await to.guest.got(1)).toEqual([`${Type.execIn} 1 halved`]);
    idle.send(Type.execStart, SESSION, 'id\0');
    expect((await to.guest.got(2))[1]).toBe(`${Type.execStart} 2 id\0`);
    late.send(Type.execStart, SESSION, 'ls\0');
    expect((await to.guest.got(3))[2]).toBe(`${Type.execStart} 3 ls\0`);
    to.guest.send(Type.execExit, 1, Buffer.alloc(4));
    expect(await busy.got(4)).toEqual([
      ...['before', 'early', 'after'].map((text) => `${Type.execOut} ${SESSION} \x01${text}`),
      `${Type.execExit} ${SESSION} \0\0\0\0`,
    ]);
    // Each end of the way ends the rest of it.
    busy.socket.destroy();
    to.link.close();
    await once(idle.socket, 'close');
  });

  it('get SIGHUP when the client that was handed over does not come', async () => {
    vi.useFakeTimers({ toFake: ['setTimeout'] });
    sockets.defer(() => void vi.useRealTimers());
    const { sessions, guest } = await host();
    const token = crypto.randomUUID();
    sessions.expect({ execIds: 3, execClients: [{ token, sessions: [[SESSION, 3]] }] });
    sessions.assertExpected(token);
    expect(() => sessions.assertExpected(crypto.randomUUID())).toThrow(SnowflockError);
    vi.advanceTimersByTime(60_000);
    vi.useRealTimers();
    expect(await guest.got(2)).toEqual([
      `${Type.execSignal} 3 ${String.fromCharCode(SIGHUP)}`,
      `${Type.execIn} 3 `,
    ]);
    expect(() => sessions.assertExpected(token)).toThrow(/start them again/);
  });
});

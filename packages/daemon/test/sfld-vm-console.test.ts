// A VM's console and its clients, before a unix socket that serves one connection at a time, as QEMU's does.

import { once } from 'node:events';
import { connect, createServer, type Socket } from 'node:net';
import { SnowflockError } from '@snowflock/protocol';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import type { LetGo } from '../src/sfld/client-relay.ts';
import { VmConsole } from '../src/sfld/vm-console.ts';
import { UnixListeners } from './unix-listeners.ts';

/** More than any socket between buffers. */
const OUTPUT = Buffer.alloc(4 << 20, 'output ');

describe('the console of a VM', () => {
  let sockets: UnixListeners;
  beforeEach(() => {
    sockets = new UnixListeners();
  });
  afterEach(() => sockets[Symbol.asyncDispose]());

  /** A console, and QEMU's end of its connections. */
  async function host(): Promise<{ console: VmConsole; qemu: Socket[] }> {
    const qemu: Socket[] = [];
    const path = await sockets.listening(
      createServer((socket) => void qemu.push(socket.on('error', () => undefined))),
    );
    sockets.defer(() => {
      for (const each of qemu) each.destroy();
    });
    return { console: new VmConsole(path), qemu };
  }

  /** Served by the console; this is its own end. */
  async function client(console: VmConsole, token?: string): Promise<Socket> {
    const server = createServer({ allowHalfOpen: true });
    const path = await sockets.listening(server);
    const accepted = once(server, 'connection') as Promise<[Socket]>;
    const own = connect(path);
    own.on('error', () => undefined);
    sockets.defer(() => void own.destroy());
    console.serve((await accepted)[0], token);
    return own;
  }

  function collect(socket: Socket): { readonly text: () => string } {
    const chunks: Buffer[] = [];
    socket.on('data', (chunk: Buffer) => chunks.push(chunk));
    return { text: () => Buffer.concat(chunks).toString() };
  }

  it('takes no input while it is held, and loses none', async () => {
    const { console, qemu } = await host();
    const terminal = await client(console);
    await vi.waitFor(() => expect(qemu).toHaveLength(1));
    const [end] = qemu as [Socket];
    const typed = collect(end);
    const seen = collect(terminal);
    terminal.write('a');
    await vi.waitFor(() => expect(typed.text()).toBe('a'));
    await console.hold();
    terminal.write('b');
    end.write('output');
    await vi.waitFor(() => expect(seen.text()).toBe('output'));
    expect(typed.text()).toBe('a');
    console.release();
    await vi.waitFor(() => expect(typed.text()).toBe('ab'));
    end.destroy();
    await once(terminal, 'close');
  });

  it('gives its clients away when all that it had printed is theirs', async () => {
    const { console, qemu } = await host();
    const terminal = await client(console);
    await vi.waitFor(() => expect(qemu).toHaveLength(1));
    await client(console);
    await vi.waitFor(() => expect(qemu).toHaveLength(2));
    await console.hold();
    const token = console.handOver();
    terminal.write('typed');
    const left: LetGo[] = [];
    console.letGo((each) => void left.push(each));
    console.release();
    for (const [i, end] of qemu.entries()) end.end(i === 0 ? OUTPUT : '');
    await vi.waitFor(() => expect(left).toHaveLength(1)); // the one that is not read is still being given what is its own
    expect(left[0]?.token).toBeNull();
    const seen = collect(terminal);
    await vi.waitFor(() => expect(left).toHaveLength(2));
    expect(left[1]?.token).toBe(token);
    await vi.waitFor(() => expect(seen.text().length).toBe(OUTPUT.length));
    const unread = collect(left[1]?.connection.resume() as Socket);
    await vi.waitFor(() => expect(unread.text()).toBe('typed'));
  });

  it('keeps the connection for a client that comes from another host, and what is printed meanwhile', async () => {
    const { console, qemu } = await host();
    const token = crypto.randomUUID();
    console.expect(token);
    await vi.waitFor(() => expect(qemu).toHaveLength(1));
    qemu[0]?.write('early');
    expect(() => console.assertExpected(crypto.randomUUID())).toThrow(SnowflockError);
    console.assertExpected(token);
    const seen = collect(await client(console, token));
    await vi.waitFor(() => expect(seen.text()).toBe('early'));
    expect(qemu).toHaveLength(1);
    expect(() => console.assertExpected(token)).toThrow(/connect again/);
  });
});

import { describe, expect, it } from 'vitest';
import { encodeGuestFrame, GuestFrameType } from '@snowflock/protocol';
import { AgentBench, guestTools } from './agent-bench.ts';
import { testIdentity } from './host-side.ts';
import { haveTools } from './needs.ts';

const able = haveTools('gcc', 'make', 'python3');
const tools = guestTools({ able });

const T = '11111111-2222-3333-4444-555555555555';
const start = (identity: string | undefined = testIdentity()): Promise<AgentBench> =>
  AgentBench.start(tools.directory, identity);

describe.skipIf(!able)('calls', () => {
  it('forwards lines of several clients at once and hands back each its reply', async () => {
    await using bench = await start();
    const clients = [bench.client(), bench.client(), bench.client()];
    clients.forEach((client, i) => client.write(`read_ticket_info t${i}\n`));
    const calls = [await bench.host.nextCall(), await bench.host.nextCall(), await bench.host.nextCall()];
    for (const call of calls.reverse())
      bench.host.send('reply', call.id, `ok ${call.text.split(' ')[1]} 1:1`);
    expect(await Promise.all(clients.map((client) => client.line()))).toEqual([
      'ok t0 1:1',
      'ok t1 1:1',
      'ok t2 1:1',
    ]);
    clients.forEach((client) => client.close());
  });

  it('takes the next line of a connection only after the reply', async () => {
    await using bench = await start();
    const client = bench.client();
    client.write('list_tickets\nwhoami\n');
    const call = await bench.host.nextCall();
    bench.host.send('reply', call.id, 'ok unused outstanding');
    expect(await client.line()).toBe('ok unused outstanding');
    expect(await client.line()).toBe('ok 7 0');
    client.close();
  });

  it('answers whoami with an error before it has an identity', async () => {
    await using bench = await AgentBench.start(tools.directory);
    const client = bench.client();
    client.write('whoami\n');
    expect(await client.line()).toMatch(/^err unavailable /);
    client.close();
  });

  it('cancels the call of a client that dies, and takes a crossing reply calmly', async () => {
    await using bench = await start();
    const client = bench.client();
    client.write(`ic_join ${T}\n`);
    const call = await bench.host.nextCall();
    client.close();
    expect((await bench.host.next('cancel')).id).toBe(call.id);
    bench.host.send('reply', call.id, 'ok');
    const other = bench.client();
    other.write('whoami\n');
    expect(await other.line()).toBe('ok 7 0');
    other.close();
  });

  it('refuses malformed and overlong lines without troubling the host', async () => {
    await using bench = await start();
    const client = bench.client();
    client.write('list\x01tickets\n\nwhoami\n');
    expect(await client.line()).toMatch(/^err bad-request/);
    expect(await client.line()).toMatch(/^err bad-request/);
    expect(await client.line()).toBe('ok 7 0');
    client.write('x'.repeat(10_000));
    expect(await client.line()).toMatch(/^err bad-request/);
    expect(await client.line()).toBeUndefined();
    expect(bench.host.waiting('call')).toBe(0);
  });

  it('serves 64 clients and turns the next away', async () => {
    await using bench = await start();
    const clients = Array.from({ length: 64 }, () => bench.client());
    clients.forEach((client) => client.write('whoami\n'));
    for (const client of clients) expect(await client.line()).toBe('ok 7 0');
    const extra = bench.client();
    expect(await extra.line()).toMatch(/^err unavailable/);
    [...clients, extra].forEach((client) => client.close());
  });

  it('interrupts pending calls when the host goes, says HELLO again and works on', async () => {
    await using bench = await start();
    const client = bench.client();
    client.write(`merge_master ${T}\n`);
    await bench.host.nextCall();
    bench.host.close();
    expect(await bench.accept()).toMatch(/^version=1 vcpus=\d+$/);
    expect(await client.line()).toMatch(/^err interrupted/);
    client.write('list_tickets\n');
    expect((await bench.host.nextCall()).text).toBe('list_tickets');
    client.close();
  });

  it('asks again on the next link what changes nothing, once it is told who it is', async () => {
    await using bench = await start();
    const lines = [
      `ic_join ${T}`,
      `wait_clones ${T} 2 60000 - -`,
      'list_tickets',
      'request_clone_ticket 2 0 0 1',
    ];
    const clients = lines.map((line) => {
      const client = bench.client();
      client.write(`${line}\n`);
      return client;
    });
    const gone = bench.client();
    gone.write(`read_ticket_info ${T}\n`);
    const first = new Map<string, { id: number; text: string }>();
    for (let n = 0; n < 5; n++) {
      const call = await bench.host.nextCall();
      first.set(call.text.split(' ')[0] ?? '', call);
    }
    const request = first.get('request_clone_ticket')?.text ?? '';
    expect(request).toMatch(
      /^request_clone_ticket 2 0 0 1 [0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/,
    );
    bench.host.close();
    await bench.accept();
    gone.close(); // nobody waits for this one any more
    const late = bench.client();
    late.write('list_tickets\n');
    expect((await bench.host.nextCall()).text).toBe('list_tickets'); // made on this link, so at once
    expect(bench.host.waiting('call')).toBe(0);
    bench.host.send('identity', 0, testIdentity());
    const again = new Map<string, { id: number; text: string }>();
    for (let n = 0; n < 4; n++) {
      const call = await bench.host.nextCall();
      again.set(call.text.split(' ')[0] ?? '', call);
    }
    expect([...again.keys()].sort()).toEqual(lines.map((line) => line.split(' ')[0]).sort());
    expect(again.get('request_clone_ticket')?.text).toBe(request);
    const left = Number(again.get('wait_clones')?.text.split(' ')[3]);
    expect(left).toBeGreaterThan(0);
    expect(left).toBeLessThan(60_000);
    const ids = [...first.values()].map(({ id }) => id);
    for (const { id } of again.values()) {
      expect(ids).not.toContain(id);
      bench.host.send('reply', id, `ok ${id}`);
    }
    for (const [index, client] of clients.entries()) {
      const verb = lines[index]?.split(' ')[0] ?? '';
      expect(await client.line()).toBe(`ok ${again.get(verb)?.id}`);
      client.close();
    }
    // And again, on whatever link comes next.
    late.close();
    const last = bench.client();
    last.write(`ic_join ${T}\n`);
    await bench.host.nextCall();
    for (let times = 0; times < 3; times++) {
      bench.host.close();
      await bench.accept();
    }
    bench.host.send('identity', 0, testIdentity());
    bench.host.send('reply', (await bench.host.nextCall()).id, 'ok');
    expect(await last.line()).toBe('ok');
    last.close();
  });

  it('starts over after a broken frame', async () => {
    await using bench = await start();
    bench.host.socket.write(Buffer.from('ffffffff0000000000000000', 'hex'));
    await bench.accept();
    const unknown = encodeGuestFrame({ type: GuestFrameType.reply, id: 1 });
    unknown.writeUInt8(99, 4);
    bench.host.socket.write(unknown);
    await bench.accept();
    expect((await bench.host.exec(['/bin/echo', 'well'])).stdout).toBe('well\n');
  });

  it('ends after a granted shutdown', async () => {
    await using bench = await start();
    const result = await bench.answering(['ok'], 'sfshutdown', []);
    expect(result.status).toBe(0);
    for (let i = 0; bench.running && i < 100; i++) await new Promise((resolve) => setTimeout(resolve, 20));
    expect(bench.running).toBe(false);
  });
});

describe.skipIf(!able)('fork', () => {
  async function held(bench: AgentBench): Promise<{ id: number; answer: ReturnType<AgentBench['client']> }> {
    const answer = bench.client();
    answer.write(`clone_master ${T}\n`);
    const call = await bench.host.nextCall();
    bench.host.send('hold', call.id);
    await bench.host.next('held', 15_000, call.id);
    return { id: call.id, answer };
  }

  it('in the master VM waits on for the reply', async () => {
    await using bench = await start();
    const { id, answer } = await held(bench);
    bench.host.send('identity', id, testIdentity({ nclones: 2 }));
    bench.host.send('reply', id, 'ok 2 0');
    expect(await answer.line()).toBe('ok 2 0');
    expect(bench.host.waiting('identified')).toBe(0);
  });

  it('in a clone answers the caller itself, interrupts other calls, forgets exec sessions', async () => {
    await using bench = await start();
    const other = bench.client();
    other.write(`ic_join ${T}\n`);
    await bench.host.nextCall();
    const session = bench.host.startExec(['sh', '-c', 'sleep 0.5; echo late; exit 3']);
    await bench.host.exec(['true']);
    const { id, answer } = await held(bench);
    bench.host.send('identity', id, testIdentity({ nclones: 2, vmid: 2, hostname: 'clone2' }));
    await bench.host.next('identified', 15_000, id);
    expect(await answer.line()).toBe('ok 2 2');
    expect(await other.line()).toMatch(/^err interrupted/);
    answer.write('whoami\n');
    expect(await answer.line()).toBe('ok 7 2');
    // The same session number is free for the clone's own host.
    bench.host.send('execStart', session, 'sh\0-c\0sleep 1; echo mine\0');
    expect(await bench.host.finishExec(session)).toEqual({ status: 0, stdout: 'mine\n', stderr: '' });
  });

  it('sends nothing between HELD and IDENTITY, and what was queued leaves before HELD', async () => {
    await using bench = await start();
    const session = bench.host.startExec(['sh', '-c', 'while :; do echo x; done']);
    bench.host.grant(session, 1 << 20);
    await bench.host.next('execOut');
    const { id } = await held(bench);
    while (bench.host.waiting('execOut') > 0) await bench.host.next('execOut');
    await new Promise((resolve) => setTimeout(resolve, 300));
    expect(bench.host.waiting('execOut')).toBe(0);
    bench.host.send('identity', id, testIdentity());
    bench.host.grant(session, 1 << 20);
    await bench.host.next('execOut', 15_000, session);
    bench.host.send('execSignal', session, Buffer.from([9]));
    expect((await bench.host.finishExec(session)).status).toBe(137);
  });

  it('a failed fork gives the caller the reply', async () => {
    await using bench = await start();
    const { id, answer } = await held(bench);
    bench.host.send('identity', id, testIdentity());
    bench.host.send('reply', id, 'err fork-failed no memory');
    expect(await answer.line()).toBe('err fork-failed no memory');
  });

  it('goes on by itself when no identity comes within 5 s', async () => {
    await using bench = await start();
    const { id, answer } = await held(bench);
    answer.close();
    await bench.host.next('cancel', 20_000, id);
    expect(bench.log).toContain('no identity within 5000 ms');
  });

  it('ignores an identity that makes no sense', async () => {
    await using bench = await start();
    for (const bad of [
      '',
      'vmid=1',
      'clusterid=1\nvmid=x\n',
      'clusterid=1\nvmid=1\nip=999.1.1.1\n',
      'a'.repeat(60_000),
    ])
      bench.host.send('identity', 0, bad);
    bench.host.send('identity', 0, testIdentity({ vmid: 5 }) + 'something_new=1\n');
    await bench.host.next('identified');
    expect(bench.host.waiting('identified')).toBe(0);
    const client = bench.client();
    client.write('whoami\n');
    expect(await client.line()).toBe('ok 7 5');
    client.close();
  });
});

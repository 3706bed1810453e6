import { execFileSync, spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, it } from 'vitest';
import { createLog } from '../src/log.ts';
import { ServiceManager } from '../src/service-manager.ts';
import { daemonUnderTest } from './daemon-process.ts';
import { createTestCa } from './sfmd-fixture.ts';

// What systemd is to a service: a datagram socket, and who wrote to it.
const LISTENER = `
import os, socket, struct, sys
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
s.bind(sys.argv[1])
s.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
print('listening', flush=True)
while True:
    data, ancillary, _, _ = s.recvmsg(4096, 1024)
    pid = 0
    for level, kind, value in ancillary:
        if kind == socket.SCM_CREDENTIALS: pid = struct.unpack('3i', value[:12])[0]
        elif kind == socket.SCM_RIGHTS:
            for (fd,) in struct.iter_unpack('i', value[:len(value) // 4 * 4]): os.close(fd)
    print(pid, data.decode().replace('\\n', ' '), flush=True)
`;
const hasNotify = ['/usr/bin/systemd-notify', '/bin/systemd-notify'].some((path) => existsSync(path));
const ROOT = join(import.meta.dirname, '../../..');

let dir: string;
let listener: ChildProcess;
let heard = '';

beforeEach(async () => {
  dir = mkdtempSync(join(tmpdir(), 'snowflock-notify-'));
  heard = '';
  listener = spawn('python3', ['-c', LISTENER, join(dir, 'notify')], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  listener.stdout?.on('data', (chunk: Buffer) => (heard += chunk.toString()));
  await expect.poll(() => heard, { timeout: 10_000 }).toContain('listening');
});
afterEach(async () => {
  const gone = once(listener, 'exit');
  listener.kill('SIGKILL');
  await gone;
  rmSync(dir, { recursive: true });
});

it.skipIf(!hasNotify)(
  'a daemon tells it that it is ready, alive and stopping',
  { timeout: 60_000 },
  async () => {
    using ca = createTestCa();
    const environment = [`NOTIFY_SOCKET=${join(dir, 'notify')}`, 'WATCHDOG_USEC=600000'];
    using sfmd = daemonUnderTest({ name: 'sfmd', tls: ca.issue('master'), prefix: ['env', ...environment] });
    sfmd.writeConfig(`cluster_hosts = [{'host': 'host1', 'cpus': 2, 'RAM': 1 << 30}]
address = '127.0.0.1'
master_listen_port = ${20000 + (process.pid % 20000)}
`);
    const ended = sfmd.command('run');
    await expect.poll(() => heard, { timeout: 20_000 }).toMatch(/READY=1 STATUS=listening on port \d+/);
    const pid = readFileSync(join(sfmd.dir, 'run/sfmd.pid'), 'utf8').trim();
    await expect.poll(() => heard, { timeout: 10_000 }).toContain('WATCHDOG=1');
    process.kill(Number(pid), 'SIGTERM');
    expect(await ended).toMatchObject({ status: 0 });
    await expect.poll(() => heard, { timeout: 10_000 }).toContain('STOPPING=1');
    // In the name of the daemon, as NotifyAccess=main asks for.
    if (process.getuid?.() === 0) expect(heard).toContain(`${pid} READY=1`);
  },
);

it('says once that nobody can be told, and goes on', async () => {
  const lines: string[] = [];
  const log = createLog({ name: 'x', write: (line) => lines.push(line) });
  const env = { NOTIFY_SOCKET: join(dir, 'nobody'), WATCHDOG_USEC: '1' };
  using manager = new ServiceManager(log, { ...env, WATCHDOG_PID: '1' });
  await manager.ready('x');
  await manager.stopping();
  expect(lines).toHaveLength(1);
  expect(lines[0]).toContain('cannot be told');
  const own: NodeJS.ProcessEnv = { ...env };
  using none = new ServiceManager(log, own);
  expect(own).toEqual({});
  expect(none).toBeDefined();
});

it.skipIf(!existsSync('/usr/bin/systemd-analyze'))('the units are what systemd understands', () => {
  const units = ['sfmd', 'sfld'].map((name) => {
    const text = readFileSync(join(ROOT, `packaging/systemd/${name}.service`), 'utf8');
    expect(text).toContain(`ExecStart=/usr/local/bin/${name} run\n`);
    mkdirSync(join(dir, 'units'), { recursive: true });
    const path = join(dir, 'units', `${name}.service`);
    writeFileSync(path, text.replace('/usr/local/bin', join(ROOT, 'bin')));
    return path;
  });
  const said = execFileSync('systemd-analyze', ['verify', '--man=no', ...units], {
    encoding: 'utf8',
    stdio: 'pipe',
  });
  expect(said).toBe('');
});

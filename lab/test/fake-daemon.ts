// Stands in for sfmd and sfld: as much of them as a lab needs, and told by SNOWFLOCK_FAKE_* to misbehave.

import { spawn } from 'node:child_process';
import { existsSync, rmSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:http';
import { hostname } from 'node:os';
import { dirname, join } from 'node:path';

const config = process.argv[4] ?? '';
const dir = dirname(config);
const lab = dirname(dir);
const daemon = config.endsWith('sfmd.cfg') ? 'sfmd' : 'sfld';

if (process.env.SNOWFLOCK_FAKE_FAIL === `${daemon}@${hostname()}`) {
  console.error('fake: the disk of this host is made of cheese');
  process.exit(3);
}
if (process.env.SNOWFLOCK_FAKE_STUBBORN) process.on('SIGTERM', () => undefined);
else process.on('SIGTERM', () => process.exit(0));

const FREE = { accel: 'tcg', cpus: 1, cpusFree: 1, ramBytes: 1, ramFreeBytes: 1, vms: 0 };
const server = createServer((request, response) => {
  const names = Array.from({ length: 64 }, (_, index) => index + 1).filter((k) =>
    existsSync(join(lab, `host-${k}`)),
  );
  const hosts = names.map((k) => ({
    host: `host${k}`,
    address: `10.231.0.${k}`,
    sfldPort: 0xc01f,
    up: existsSync(join(lab, `host-${k}`, 'up')),
    ...FREE,
  }));
  response.setHeader('content-type', 'application/json');
  response.end(JSON.stringify(request.url === '/v1/master/state' ? { hosts, clusters: [] } : {}));
});
if (daemon === 'sfmd') console.log('{"level":30,"msg":"starting"}\n{"ready":true,"port":1}');
else {
  rmSync(join(dir, 'run', 'sfld.sock'), { force: true });
  server.listen(join(dir, 'run', 'sfld.sock'), () => {
    writeFileSync(join(dir, 'up'), '');
    // What a VM is to the lab: a process that outlives its sfld.
    if (process.env.SNOWFLOCK_FAKE_VM) spawn('sleep', ['1000'], { detached: true, stdio: 'ignore' }).unref();
    console.log('{"ready":true}');
  });
}
setInterval(() => undefined, 60_000);

// The SDK against a real system: everything that it can do, once.

import { execFile } from 'node:child_process';
import { randomUUID } from 'node:crypto';
import { mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { PassThrough } from 'node:stream';
import { promisify } from 'node:util';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { type MasterVm, System, type SystemEvent } from '@snowflock/sdk';
import { within } from './support/deadline.ts';
import { compileForGuest } from './support/guest-programs.ts';
import { requireVm } from './require-vm.ts';
import { sharedLab } from './support/test-lab.ts';

const SNOWFLOCK = join(import.meta.dirname, '../bin/snowflock');
const PYTHON_PATH = join(import.meta.dirname, '../guest/python');
const OVER_TCP = join(import.meta.dirname, 'support/sdk-over-tcp.ts');
const EVENT_MS = 20_000;

/** Whose sfld is asked: a host speaks for clusters that it runs VMs of. sfmd chooses at random. */
async function seedOnHost1(system: System, config: string): Promise<MasterVm> {
  for (;;) {
    const master = await system.seedFrom(config);
    if (master.host === 'host1') return master;
    await master[Symbol.asyncDispose]();
  }
}

describe.skipIf(!requireVm())('the SDK', () => {
  const lab = sharedLab({ hosts: 2, cpus: 1, ramMib: 512 });
  let dir = '';
  beforeAll(() => void (dir = mkdtempSync('/tmp/sfsdk-')));
  afterAll(() => rmSync(dir, { recursive: true }));

  it('seeds, runs, copies, forks, merges, joins, tells what happens, and ends what it made', async () => {
    const socketPath = lab().lab.hosts[0]?.socketPath ?? '';
    await using system = System.connect({ socketPath });
    await using events = await system.events();
    const told = events[Symbol.asyncIterator]();
    const until = async (type: SystemEvent['type']): Promise<SystemEvent> => {
      for (;;) {
        const { value } = await within(EVENT_MS, `the event ${type}`, told.next());
        if (!value || value.type === type) return value ?? { type: 'gap' };
      }
    };
    writeFileSync(join(dir, 'seed.cfg'), 'disk_image = "micro"\nvcpus = 1\nmemory = 96\n');
    let clusterid: number;
    {
      await using master = await seedOnHost1(system, join(dir, 'seed.cfg'));
      clusterid = master.clusterid;
      let started = await until('cluster-started');
      while (started.type === 'cluster-started' && started.clusterid !== clusterid)
        started = await until('cluster-started');
      expect(started).toEqual({
        type: 'cluster-started',
        clusterid,
        host: master.host,
      });

      const { status, stdout } = await master.exec(['sh', '-c', 'tr a-z A-Z; exit 3'], {
        input: 'collected',
      });
      expect([status, stdout.toString()]).toEqual([3, 'COLLECTED']);
      expect(await master.state()).toMatchObject({ vmid: 0, status: 'running', host: master.host });

      writeFileSync(join(dir, 'in'), 'data\n', { mode: 0o640 });
      await master.copyIn(join(dir, 'in'), '/tmp/data');
      writeFileSync(join(dir, 'vmtest'), await compileForGuest('vmtest'), { mode: 0o755 });
      await master.copyIn(join(dir, 'vmtest'), '/tmp');

      const { ticket, allowed } = await master.requestTicket(2, { block: false });
      expect(allowed).toBe(1);
      expect(await master.tickets()).toEqual({ unused: [ticket], outstanding: [] });
      await master.exec(['sfdoclone', ticket ?? '']);
      expect(await until('clone-running')).toMatchObject({ clusterid, ticket, vmid: 1 });
      expect(await master.clonesOf(ticket ?? '')).toEqual([{ vmid: 1, processors: 1 }]);
      const clone = master.clone(1);
      expect((await clone.state()).host).not.toBe(master.host);
      await clone.copyOut('/tmp/data', join(dir, 'out'));
      expect([readFileSync(join(dir, 'out'), 'utf8'), statSync(join(dir, 'out')).mode & 0o777]).toEqual([
        'data\n',
        0o640,
      ]);

      const output = new PassThrough();
      const session = await clone.start({ argv: ['cat'], stdin: null, stdout: output, stderr: output });
      expect(await session.exited).toBe(0);

      await lab().lab.exec(1, [
        SNOWFLOCK,
        'cert',
        'issue',
        'sdk',
        '--role',
        'operator',
        '--dir',
        dir,
        '--socket',
        join(lab().lab.dir, 'host-1/master-run/sfmd.sock'),
      ]);
      const remote = await lab().lab.exec(2, [
        process.execPath,
        OVER_TCP,
        dir,
        'sdk',
        master.name,
        clone.name,
      ]);
      expect(JSON.parse(remote.stdout)).toEqual({
        hosts: ['host1', 'host2'],
        hostnames: [`sf-${clusterid}-0`, `sf-${clusterid}-1`],
      });

      await expect(master.shutdown()).rejects.toMatchObject({ code: 'tickets-outstanding' });
      await master.merge(ticket ?? '');
      expect(await until('ticket-ended')).toEqual({ type: 'ticket-ended', clusterid, ticket, how: 'merged' });

      const second = await master.requestTicket(1);
      await master.disposeTicket(second.ticket ?? '');
      const third = await master.requestTicket(1);
      await master.exec(['sfdoclone', third.ticket ?? '']);
      const exits = until('clone-exited');
      await master
        .clone(3)
        .start({ argv: ['/tmp/vmtest', 'call', 'ic_exit'], stdin: null, stdout: output, stderr: output });
      await master.join(third.ticket ?? '');
      expect(await exits).toMatchObject({ clusterid, ticket: third.ticket, vmid: 3 });
      await expect(master.join(randomUUID())).rejects.toMatchObject({ code: 'no-such-ticket' });
      await master.mergeAll();
      expect(await master.tickets()).toEqual({ unused: [], outstanding: [] });
    }
    let ended = await until('cluster-ended');
    while (ended.type === 'cluster-ended' && ended.clusterid !== clusterid)
      ended = await until('cluster-ended');
    expect(ended).toEqual({ type: 'cluster-ended', clusterid });
    expect((await system.state()).clusters).toEqual([]);
    await expect(system.vm({ clusterid, vmid: 0 }).state()).rejects.toMatchObject({ code: 'no-such-vm' });
    await lab().expectIdle();
  });

  it("has its like in Python's domain 0 API", async () => {
    writeFileSync(join(dir, 'seed.cfg'), 'disk_image = "micro"\nvcpus = 1\nmemory = 64 + 32\n');
    const program = `
import snowflock
domain_id, ip = snowflock.sf_seed("${join(dir, 'seed.cfg')}")
cluster = snowflock.dump_cluster_state()[domain_id]
hosts = snowflock.dump_host_state()
print(ip, cluster["vcpus"], cluster["memory"], cluster["disk_image"], sorted(cluster["vms"]), cluster["tickets"])
print(cluster["vms"][0]["ip"], hosts[cluster["vms"][0]["host"]]["cpus_free"], sorted(hosts), {each["up"] for each in hosts.values()})
snowflock.shutdown(domain_id)
print(snowflock.dump_cluster_state(), {each["ram"] - each["ram_free"] for each in snowflock.dump_host_state().values()})
`;
    const env = {
      SNOWFLOCK_SOCKET: lab().lab.hosts[0]?.socketPath,
      PYTHONPATH: PYTHON_PATH,
      PYTHONDONTWRITEBYTECODE: '1',
    };
    const { stdout } = await promisify(execFile)('python3', ['-c', program], {
      env: { ...process.env, ...env },
    });
    expect(stdout.split('\n')).toEqual([
      '10.0.0.1 1 96 micro [0] {}',
      "10.0.0.1 0 ['host1', 'host2'] {True}",
      '{} {0}',
      '',
    ]);
  });
});

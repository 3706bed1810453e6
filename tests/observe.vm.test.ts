// What an administrator sees of a fork: figures, logs, the API's own description. Nobody without a certificate sees any.

import { describe, expect, it } from 'vitest';
import { requireVm } from './require-vm.ts';
import { getText } from './support/get-text.ts';
import { sharedLab } from './support/test-lab.ts';

const RUN = requireVm();

/** Sum of a metric over its labels that match. */
function sumOf(text: string, name: string, label = ''): number {
  return text
    .split('\n')
    .filter((line) => (line.startsWith(`${name} `) || line.startsWith(`${name}{`)) && line.includes(label))
    .reduce((sum, line) => sum + Number(line.split(' ').at(-1)), 0);
}

describe.skipIf(!RUN)('an administrator', () => {
  const lab = sharedLab({ hosts: 2, cpus: 4, ramMib: 1536 });
  const metrics = async (): Promise<string> => {
    const texts = lab().lab.hosts.map(({ socketPath }) => getText(socketPath, '/metrics'));
    return (await Promise.all(texts)).join('\n');
  };

  it('sees a fork in figures and logs, by cluster, VM and ticket', async () => {
    const master = await lab().seed();
    const { ticket, clones } = await lab().fork(master, 3);
    const before = await metrics();
    expect(sumOf(before, 'snowflock_forks_total', 'ok')).toBe(1);
    expect(sumOf(before, 'snowflock_fork_pause_seconds_count')).toBe(1);
    expect(sumOf(before, 'snowflock_clones_total', '"ok"')).toBe(3);
    expect(sumOf(before, 'snowflock_host_vms', 'clone')).toBe(3);
    expect(sumOf(before, 'snowflock_sfmd_reachable')).toBe(2);
    const fetched = sumOf(before, 'snowflock_fetched_bytes_total');
    expect(fetched).toBeGreaterThan(1 << 20);
    await master.run(['sfmerge', ticket]);
    const after = await metrics();
    expect(sumOf(after, 'snowflock_host_vms', 'clone')).toBe(0);
    expect(sumOf(after, 'snowflock_page_processes')).toBe(0);
    expect(sumOf(after, 'snowflock_fetched_bytes_total')).toBeGreaterThanOrEqual(fetched);

    const { name } = lab().lab;
    const logs = async (...args: string[]): Promise<Record<string, unknown>[]> => {
      const { out } = await lab().command('snowflock', ['logs', '--lab', name, '--json', ...args]);
      return out
        .split('\n')
        .filter(Boolean)
        .map((line) => JSON.parse(line) as Record<string, unknown>);
    };
    const [clone] = clones;
    expect((await logs('--vm', clone?.name ?? '')).map(({ msg }) => msg)).toContain('clone runs');
    const ofTicket = await logs('--ticket', ticket.slice(0, 8));
    expect(ofTicket.map(({ msg }) => msg)).toEqual(expect.arrayContaining(['granted', 'forked', 'clean-up']));
    // An orderly end is no error.
    expect(ofTicket.filter(({ level }) => level === 'error')).toEqual([]);
    for (const line of ofTicket) expect(line).toMatchObject({ clusterid: master.clusterid, ticket });
    const all = await logs();
    for (const line of all) expect(JSON.stringify(line)).not.toMatch(/PRIVATE KEY|"[0-9a-f]{64}"/);
  });

  it('reads the API from both daemons; a stranger reads nothing', async () => {
    const socket = lab().lab.hosts[0]?.socketPath ?? '';
    const document = JSON.parse(await getText(socket, '/openapi.json')) as { openapi: string; paths: object };
    expect(document.openapi).toBe('3.1.1');
    expect(Object.keys(document.paths)).toContain('/v1/tickets/{ticket}/launch');
    const address = lab().lab.hosts[0]?.address ?? '';
    for (const port of [0xf10c, 0xc01f]) {
      const script = `fetch('https://${address}:${port}/metrics').then(async (r) => console.log(r.status, await r.text()), (e) => console.log('refused', e.cause?.code));`;
      const argv = [process.execPath, '-e', `process.env.NODE_TLS_REJECT_UNAUTHORIZED = '0'; ${script}`];
      const { stdout } = await lab().lab.exec(2, argv);
      expect(stdout).toMatch(/^refused/);
    }
  });
});

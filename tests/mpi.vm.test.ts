// sfmpirun (manual, section 8): MPI programs over clones, with Debian's MPICH and Open MPI as they are.

import { describe, expect, it } from 'vitest';
import type { VmShape } from '@snowflock/protocol';
import { eventually } from './support/deadline.ts';
import type { Guest, GuestOptions, GuestProgram, Outcome } from './support/guest.ts';
import { requireVm } from './require-vm.ts';
import { sharedLab } from './support/test-lab.ts';

const RUN = requireVm();
const SHAPE: VmShape = { diskImage: 'mpi', vcpus: 2, memoryMib: 256 };
const PROGRAMS = '/usr/lib/snowflock/mpi';
const MPITEST = `${PROGRAMS}/mpitest`;
/** A fork, and an MPI program under emulation on a busy machine. */
const JOB_MS = 90_000;

describe.skipIf(!RUN)('sfmpirun', () => {
  const lab = sharedLab({ hosts: 2, cpus: 4, ramMib: 1536 });

  const run = (master: Guest, args: readonly string[], options: GuestOptions = {}): Promise<Outcome> =>
    master.exec(['sfmpirun', ...args], { deadlineMs: JOB_MS, ...options });

  /** VMs of the cluster that run, and what of sfmpirun runs in its master VM. */
  async function running(master: Guest): Promise<{ vmids: number[]; programs: string }> {
    const { clusters } = await lab().state();
    const vms = clusters.find(({ clusterid }) => clusterid === master.clusterid)?.vms ?? [];
    const programs = await master.sh('pgrep -a "mpi|hydra|orted|sf-keeper"; true');
    return { vmids: vms.filter(({ status }) => status === 'running').map(({ vmid }) => vmid), programs };
  }

  async function expectNothingLeft(master: Guest): Promise<void> {
    expect(await running(master)).toEqual({ vmids: [0], programs: '' });
    const { clusters } = await lab().state();
    expect(clusters.find(({ clusterid }) => clusterid === master.clusterid)?.tickets).toEqual([]);
    expect(await master.sh('ls -d /tmp/sfjob-*; true')).toBe('');
  }

  it('runs programs of MPICH and Open MPI', async () => {
    const master = await lab().seed(SHAPE);
    const name = `sf-${master.clusterid}`;
    const input = '40\n2\n';

    const mpich = await run(master, ['4', MPITEST, 'all'], { input });
    expect(mpich).toMatchObject({ status: 42, err: 'all read: 168\n' });
    const places = [`${name}-1`, `${name}-1`, `${name}-2`, `${name}-2`]; // vmids are never used twice
    const sums = places.map((place, rank) => `rank ${rank} of 4 on ${place}: 0 wrong`);
    expect(mpich.out.trim().split('\n').sort()).toEqual([...sums, 'ring of 4: 6']);
    await expectNothingLeft(master);

    const openmpi = await run(master, ['4', `${MPITEST}-openmpi`, 'all'], { input });
    expect(openmpi.status).toBe(42);
    expect(openmpi.err).toContain('all read: 168\n'); // and what mpirun says of a status that is not 0
    const others = sums.map((line) => line.replace(/-(\d):/, (_, vmid) => `-${Number(vmid) + 2}:`));
    expect(openmpi.out.trim().split('\n').sort()).toEqual([...others, 'ring of 4: 6']);
    await expectNothingLeft(master);

    const ports = ['-i', '7001', '-o', '7002', '-e', '7003', '-l', '7004', '-m', '7005'];
    const pi = await run(master, [...ports, '-v', '2', `${PROGRAMS}/cpi`]);
    expect(pi).toMatchObject({ status: 0, err: '' });
    for (const rank of [0, 1]) expect(pi.out).toContain(`Process ${rank} of 2 is on ${name}-${rank + 5}\n`);
    expect(pi.out).toContain('pi is approximately 3.14159265');
    await expectNothingLeft(master);
  });

  it("runs MPICH's own tests, and its example that asks", async () => {
    const master = await lab().seed(SHAPE);
    // Scatter, reductions over several communicators, scan, each process to each, and the making of communicators.
    for (const name of ['coll4', 'allred6', 'scantst', 'isendrecv', 'cmsplit'])
      expect({ name, ...(await run(master, ['4', `${PROGRAMS}/${name}`])) }).toEqual({
        ...{ name, status: 0, err: '' },
        out: ' No Errors\n',
      });
    const asked = await run(master, ['4', `${PROGRAMS}/icpi`], { input: '100\n1000\n0\n' });
    expect(asked).toMatchObject({ status: 0, err: '' });
    const found = [...asked.out.matchAll(/pi is approximately (3\.\d{5})/g)].map(([, pi]) => pi);
    expect(found).toEqual(['3.14160', '3.14159']); // with 100 intervals, and with 1,000
    await expectNothingLeft(master);
  });

  it('runs a real program, LAMMPS: four processes find what one does', async () => {
    const master = await lab().seed(SHAPE);
    const lammps = ['lmp', '-in', `${PROGRAMS}/melt.lmp`, '-log', 'none'];
    /** Step, temperature, energies and pressure. */
    const rows = ({ status, out }: Outcome): number[][] => {
      expect(status).toBe(0);
      const table = /^ *Step.*\n((?: *\d+( +-?[\d.e+-]+)+ *\n)+)/m.exec(out)?.[1] ?? '';
      return table
        .trim()
        .split('\n')
        .map((line) => line.trim().split(/ +/).map(Number));
    };
    const serial = rows(await master.exec(lammps, { deadlineMs: JOB_MS }));
    expect(serial.map(([step]) => step)).toEqual([0, 20, 40, 60]);
    const cloned = await run(master, ['4', ...lammps]);
    expect(cloned.out).toContain('by 2 MPI processor grid');
    for (const [i, row] of rows(cloned).entries())
      for (const [j, value] of row.entries()) expect(value).toBeCloseTo(serial[i]?.[j] ?? Number.NaN, 4);
    await expectNothingLeft(master);
  });

  it('leaves nothing behind a program that fails, is ended, or never starts', async () => {
    const master = await lab().seed(SHAPE);
    expect(await run(master, ['4', MPITEST, 'abort', '2'])).toMatchObject({ status: 3 });
    await expectNothingLeft(master);
    expect(await run(master, ['4', 'no-such-program'])).toEqual({
      status: 127,
      out: '',
      err: 'sfmpirun: no-such-program is not there; nothing was cloned\n',
    });
    expect(await run(master, ['7', MPITEST, 'all'])).toEqual({
      status: 1,
      out: '',
      err: 'sfmpirun: there are no resources for 7 processors; try again later, or with fewer\n',
    });
    await expectNothingLeft(master);

    await using program = await master.start(['sfmpirun', '2', MPITEST, 'wait']);
    for (let rank = 0; rank < 2; rank++) await program.line(JOB_MS);
    await master.sh('pkill -INT -x sfmpirun');
    expect(await program.exited).toBe(130);
    await expectNothingLeft(master);
  });

  it('ends when a clone is lost; clones end when sfmpirun is killed', async () => {
    const master = await lab().seed({ ...SHAPE, vcpus: 1 });
    const waiting = async (): Promise<GuestProgram> => {
      const program = await master.start(['sfmpirun', '2', MPITEST, 'wait']);
      for (let rank = 0; rank < 2; rank++) await program.line(JOB_MS);
      return program;
    };
    await using lost = await waiting();
    const [clone] = (await Promise.all([1, 2].map((k) => lab().clonesOn(k, master.clusterid)))).flat();
    process.kill(clone?.pid ?? Number.NaN, 'SIGKILL');
    expect(await lost.line(JOB_MS)).toContain('is lost; the program is ended');
    expect(await lost.exited).toBe(1);
    await expectNothingLeft(master);

    await using killed = await waiting();
    await master.sh('pkill -KILL -x sfmpirun');
    expect(await killed.exited).toBe(137);
    await eventually(JOB_MS, 'all to be given back', () => expectNothingLeft(master));
  });
});

// npm run bench -- mpi: what it takes to run the smallest MPI program in 4 processes: with sfmpirun, which clones the VM for it and ends
// the clones, and, in turn, with mpiexec on 2 machines that are ready: clones that were there before, with the same remote shell.

import { Lab } from '@snowflock/lab';
import { execInVm } from '@snowflock/sdk';
import { chooseAccel } from '@snowflock/vm';
import { BenchCluster } from '../cluster.ts';
import { figure, machine, type BenchResult, type Figure } from '../figures.ts';

const SHAPE = { diskImage: 'mpi', vcpus: 2, memoryMib: 256 };
const LAB = { name: 'bench', hosts: 2, cpus: 6, ramBytes: 2 * 2 ** 30 };
const PROCESSES = 4;
const PROGRAM = '/usr/lib/snowflock/mpi/cpi';
const BOOT_TIMEOUT_MS = 120_000;
const RUN_TIMEOUT_MS = 600_000;
/** Of both kinds, not counted: the first translates code, and reads programs from the disk. */
const UNCOUNTED = 1;

/** In the VM: `sfmpirun`, and then mpiexec in clones that stay, so many times each; a line each, of the kind and its milliseconds. */
const SCRIPT = `
import subprocess, sys, time
from sfjobs.job import Job
from sfmpi.mpi import COMMANDS, hosts_of

processes, rounds, program = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]

def timed(kind, *command):
    begin = time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    print(kind, 1000 * (time.monotonic() - begin), flush=True)

if sys.argv[4:] == ["mpiexec"]:
    with Job("bench", {}) as job:
        places = job.fork(processes, False, processes)
        command, environment, hosts = COMMANDS["mpich"](job, places, None, [program])
        with open(hosts_of(job), "w") as file:
            file.write(hosts)
        again = [sys.executable, __file__, str(processes), str(rounds), program, "ready", *command]
        sys.exit(job.run(places, again, environment))
elif sys.argv[4:5] == ["ready"]:
    for _ in range(rounds):
        timed("mpiexec", *sys.argv[5:])
else:
    for _ in range(rounds):
        timed("sfmpirun", "sfmpirun", str(processes), program)
`;

export async function benchMpi(options: { quick: boolean; signal: AbortSignal }): Promise<BenchResult> {
  const { quick, signal } = options;
  await using lab = await Lab.up({ ...LAB, signal });
  await using cluster = await BenchCluster.seed(lab, SHAPE);
  const vm = `${cluster.clusterid}:0`;
  const run = async (command: string[], input = '', waitMs?: number): Promise<string> => {
    const limit = AbortSignal.any([signal, AbortSignal.timeout(RUN_TIMEOUT_MS)]);
    const { status, stdout, stderr } = await execInVm(lab.client(1), vm, command, {
      signal: limit,
      waitMs,
      input,
    });
    if (status !== 0)
      throw new Error(`VM ${vm}: ${command.join(' ')}: status ${status}: ${stderr.toString()}`);
    return stdout.toString();
  };
  await run(['sh', '-c', 'cat >/root/bench.py'], SCRIPT, BOOT_TIMEOUT_MS);
  const rounds = UNCOUNTED + (quick ? 2 : 10);
  const bench = (...kind: string[]): Promise<string> =>
    run([
      'env',
      'PYTHONPATH=/usr/lib/snowflock/jobs',
      'python3',
      '/root/bench.py',
      ...[String(PROCESSES), String(rounds), PROGRAM, ...kind],
    ]);
  const cloned = samplesOf('sfmpirun', await bench());
  const ready = samplesOf('mpiexec', await bench('mpiexec'));
  const each = (name: string, samples: number[]): Figure =>
    figure({ name, case: `${PROCESSES} processes`, unit: 'ms', samples });
  const sfmpirun = each('sfmpirun', cloned);
  const mpiexec = each('mpiexec, ready machines', ready);
  const samples = cloned.map((ms) => ms / mpiexec.median);
  return {
    bench: 'mpi',
    machine: machine((await chooseAccel('auto')).chosen),
    figures: [
      sfmpirun,
      mpiexec,
      figure({ name: 'sfmpirun / mpiexec', case: `${PROCESSES} processes`, unit: 'ratio', samples }),
    ],
  };
}

function samplesOf(kind: string, text: string): number[] {
  const samples = [...text.matchAll(new RegExp(`^${kind} ([\\d.]+)$`, 'gm'))].map(([, ms]) => Number(ms));
  return samples.slice(UNCOUNTED);
}

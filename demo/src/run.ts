// The main job: a VM with a sequence database warm in its memory becomes five, which finish the search together.

import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { Listr } from 'listr2';
import { execInVm } from '@snowflock/sdk';
import { buildImage } from '@snowflock/image';
import { Lab } from '@snowflock/lab';
import { CloneRecord, ForkRecord, SeedReply, SnowflockError } from '@snowflock/protocol';
import { z } from 'zod';
import { CLONES, HOSTS, type DemoFindings } from './result.ts';

const LAB_NAME = 'demo';
const LAB_CPUS = 4;
const LAB_RAM_BYTES = 6 * 2 ** 30;
const SHAPE = { diskImage: 'debian', vcpus: 1, memoryMib: 768 } as const;
/** Sized for a serial search of 60 to 120 s under emulation. */
const QUERIES = 170;
const SCRIPT = join(import.meta.dirname, '../../examples/blast/blast_clones.py');
const SCRIPT_IN_GUEST = '/root/blast_clones.py';
const QUERY_SET = '/srv/klebsiella/query.faa';
const DATABASE = '/srv/klebsiella/db/kleb3';
const REQUEST_TIMEOUT_MS = 120_000;

const Warmed = z.object({ databaseBytes: z.number(), hits: z.number() });
const Searched = z.object({ seconds: z.number(), queries: z.number(), hits: z.number() });
const SearchedOverClones = Searched.extend({
  forkSeconds: z.number(),
  ticket: z.string(),
  clones: z.number(),
});

interface Context {
  lab?: Lab;
  vm?: string;
  queryFile?: string;
  over?: z.infer<typeof SearchedOverClones>;
  serial?: z.infer<typeof Searched>;
  found?: DemoFindings;
}

export async function runDemo(options: { signal: AbortSignal; queries?: number }): Promise<DemoFindings> {
  const { signal } = options;
  const context: Context = {};
  const steps = new Listr<Context>(
    [
      {
        title: 'Image of the guests',
        task: async (_, task) => {
          await buildImage(SHAPE.diskImage, { signal, onProgress: (text) => (task.output = text) });
        },
        rendererOptions: { outputBar: 1 },
      },
      {
        title: `Lab of ${HOSTS} hosts`,
        task: async (ctx) => {
          ctx.lab = await Lab.up({
            name: LAB_NAME,
            hosts: HOSTS,
            cpus: LAB_CPUS,
            ramBytes: LAB_RAM_BYTES,
            signal,
          });
        },
      },
      { title: 'Master VM: seed and boot', task: (ctx) => seed(ctx, signal) },
      { title: 'Database into its memory', task: (ctx, task) => warm(ctx, task, options) },
      {
        title: `Fork into ${CLONES} clones, search, collect, join`,
        task: async (ctx, task) => {
          ctx.over = await script(
            ctx,
            ['clones', String(CLONES), ctx.queryFile ?? '', '/root/clones.tsv'],
            SearchedOverClones,
            signal,
          );
          task.title += `: ${ctx.over.seconds.toFixed(1)} s`;
        },
      },
      {
        title: 'The same search in one VM',
        task: async (ctx, task) => {
          ctx.serial = await script(
            ctx,
            ['serial', ctx.queryFile ?? '', '/root/serial.tsv'],
            Searched,
            signal,
          );
          task.title += `: ${ctx.serial.seconds.toFixed(1)} s`;
        },
      },
      {
        title: 'Figures and comparison',
        task: async (ctx) => {
          ctx.found = await findings(ctx, signal);
        },
      },
    ],
    { ctx: context, renderer: 'default', fallbackRenderer: 'simple', registerSignalListeners: false },
  );
  try {
    await steps.run();
  } finally {
    await context.lab?.down();
  }
  if (!context.found) throw new SnowflockError('internal', 'the demo ended without findings');
  return context.found;
}

function lab(ctx: Context): Lab {
  if (!ctx.lab) throw new SnowflockError('internal', 'the lab is not up');
  return ctx.lab;
}

async function inVm(ctx: Context, argv: string[], signal: AbortSignal, input?: Buffer): Promise<string> {
  const { status, stdout, stderr } = await execInVm(lab(ctx).client(1), ctx.vm ?? '', argv, {
    input,
    signal,
  });
  if (status !== 0)
    throw new SnowflockError(
      'vm-failed',
      `in the VM, '${argv.join(' ')}' exited with ${status}: ${stderr.toString().slice(-2000)}`,
    );
  return stdout.toString();
}

async function script<T>(ctx: Context, args: string[], reply: z.ZodType<T>, signal: AbortSignal): Promise<T> {
  const printed = await inVm(ctx, ['python3', SCRIPT_IN_GUEST, ...args], signal);
  return reply.parse(JSON.parse(printed.trim().split('\n').at(-1) ?? ''));
}

async function seed(ctx: Context, signal: AbortSignal): Promise<void> {
  const { clusterid, vmid } = await lab(ctx).client(1).request({
    method: 'POST',
    path: '/v1/master/clusters',
    body: SHAPE,
    reply: SeedReply,
    timeoutMs: REQUEST_TIMEOUT_MS,
    signal,
  });
  ctx.vm = `${clusterid}:${vmid}`;
  await inVm(ctx, ['true'], signal);
}

async function warm(
  ctx: Context,
  task: { title: string },
  options: { signal: AbortSignal; queries?: number },
): Promise<void> {
  await inVm(ctx, ['sh', '-c', `cat > ${SCRIPT_IN_GUEST}`], options.signal, await readFile(SCRIPT));
  ctx.queryFile = '/root/queries.faa';
  const count = options.queries ?? QUERIES;
  const take = `awk '/^>/ { n++ } n > ${count} { exit } { print }' ${QUERY_SET} > ${ctx.queryFile}`;
  await inVm(ctx, ['sh', '-c', take], options.signal);
  const { databaseBytes } = await script(ctx, ['warm', DATABASE], Warmed, options.signal);
  task.title += `: ${(databaseBytes / 2 ** 20).toFixed(1)} MiB`;
}

async function findings(ctx: Context, signal: AbortSignal): Promise<DemoFindings> {
  const { over, serial } = ctx;
  if (!over || !serial) throw new SnowflockError('internal', 'a search is missing');
  const get = async <T>(host: number, path: string, reply: z.ZodType<T>): Promise<T> =>
    lab(ctx).client(host).request({ method: 'GET', path, reply, timeoutMs: REQUEST_TIMEOUT_MS, signal });
  const clones: DemoFindings['clones'][number][] = [];
  let fork: ForkRecord | undefined;
  for (const host of lab(ctx).hosts) {
    const records = await get(host.k, '/v1/clones', z.array(CloneRecord));
    clones.push(
      ...records.filter((one) => one.ticket === over.ticket).map((one) => ({ ...one, host: host.name })),
    );
    fork ??= (await get(host.k, '/v1/forks', z.array(ForkRecord))).find((one) => one.ticket === over.ticket);
  }
  if (!fork) throw new SnowflockError('internal', 'no host has a record of the fork');
  const [clonesResult, serialResult] = await Promise.all([
    inVm(ctx, ['cat', '/root/clones.tsv'], signal),
    inVm(ctx, ['cat', '/root/serial.tsv'], signal),
  ]);
  return {
    fork,
    clones: clones.sort((a, b) => a.vmid - b.vmid),
    queries: serial.queries,
    hits: serial.hits,
    identical: clonesResult === serialResult && serialResult.length > 0,
    serialSeconds: serial.seconds,
    clonedSeconds: over.seconds,
  };
}

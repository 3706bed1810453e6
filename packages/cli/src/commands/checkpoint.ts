// snowflock checkpoint create | list | show | delete | clone

import { Command, InvalidArgumentError } from 'commander';
import { checkpointName } from '@snowflock/protocol';
import type { CheckpointInfo } from '@snowflock/sdk';
import { formatSeedReply } from '../seed.ts';
import { openSystem, SOCKET_OPTION } from '../sfld-socket.ts';
import { formatBytes, formatTable } from '../table.ts';
import { parseCount, parseVm } from './arguments.ts';

interface Socket {
  readonly socket?: string;
}

function parseName(value: string): string {
  const parsed = checkpointName.safeParse(value);
  if (parsed.success) return parsed.data;
  throw new InvalidArgumentError(parsed.error.issues[0]?.message ?? 'is no name of a checkpoint');
}

export function checkpointCommand(): Command {
  return new Command('checkpoint')
    .summary('keep the state of a running VM under a name, and start VMs from it')
    .addCommand(createCommand())
    .addCommand(listCommand())
    .addCommand(showCommand())
    .addCommand(deleteCommand())
    .addCommand(cloneCommand());
}

function createCommand(): Command {
  return new Command('create')
    .summary('make a checkpoint of a VM')
    .description(
      'Keeps memory, disk and devices of a running VM as they are at this instant. The VM is paused as for a fork, some ms,\n' +
        'and goes on; what it was is written to the disk of its host in the background.',
    )
    .argument('<vm>', 'clusterid:vmid', parseVm)
    .argument('<name>', 'of the new checkpoint', parseName)
    .option('--description <text>', 'for people')
    .option('--no-wait', 'do not wait until it is on the disk')
    .option('--json', 'print a JSON object')
    .option(...SOCKET_OPTION)
    .action(
      async (
        vm: string,
        name: string,
        {
          description,
          wait,
          json,
          ...options
        }: Socket & { description?: string; wait: boolean; json?: boolean },
      ) => {
        await using system = openSystem(options);
        const reply = await system.checkpoints.create(vm, name, { description, wait });
        const size = reply.status === 'writing' ? 'being written' : formatBytes(reply.sizeBytes);
        const text = `${name}: ${size}, on ${reply.host}; the VM was paused for ${Math.round(reply.pauseMs)} ms`;
        process.stdout.write(`${json ? JSON.stringify(reply) : text}\n`);
      },
    );
}

function listCommand(): Command {
  return new Command('list')
    .summary('list the checkpoints of all hosts')
    .option('--json', 'print a JSON array')
    .option(...SOCKET_OPTION)
    .action(async ({ json, ...options }: Socket & { json?: boolean }) => {
      await using system = openSystem(options);
      const all = await system.checkpoints.list();
      if (json) return void process.stdout.write(`${JSON.stringify(all)}\n`);
      const columns = [
        { title: 'NAME' },
        { title: 'STATE' },
        { title: 'HOST' },
        { title: 'SIZE', align: 'right' as const },
        { title: 'CREATED' },
        { title: 'IMAGE' },
        { title: 'VM' },
        { title: 'DESCRIPTION' },
      ];
      const rows = all.map((each) => [
        ...[each.name, stateOf(each), each.host, formatBytes(each.sizeBytes), dateOf(each)],
        ...[each.shape.diskImage, each.vm, each.description],
      ]);
      const width = process.stdout.isTTY ? process.stdout.columns : undefined;
      process.stdout.write(`${formatTable(columns, rows, { width }).join('\n')}\n`);
    });
}

function showCommand(): Command {
  return new Command('show')
    .summary('show one checkpoint')
    .argument('<name>', 'of the checkpoint', parseName)
    .option('--json', 'print a JSON object')
    .option(...SOCKET_OPTION)
    .action(async (name: string, { json, ...options }: Socket & { json?: boolean }) => {
      await using system = openSystem(options);
      const found = await system.checkpoints.get(name);
      process.stdout.write(json ? `${JSON.stringify(found)}\n` : describe(found));
    });
}

function deleteCommand(): Command {
  return new Command('delete')
    .summary('delete a checkpoint')
    .description('Refused while a cluster that was started from it is still there.')
    .argument('<name>', 'of the checkpoint', parseName)
    .option('--force', 'forget it also when the host that holds it is down')
    .option(...SOCKET_OPTION)
    .action(async (name: string, { force, ...options }: Socket & { force?: boolean }) => {
      await using system = openSystem(options);
      await system.checkpoints.delete(name, { force });
    });
}

function cloneCommand(): Command {
  return new Command('clone')
    .summary('start new clusters from a checkpoint')
    .description(
      'Starts N new clusters (default 1), each with a master VM that goes on where the checkpoint was made, on whichever host\n' +
        'has room; prints for each what sfseed prints. A seed configuration with the one key checkpoint = "NAME" does the same.',
    )
    .argument('<name>', 'of the checkpoint', parseName)
    .argument('[n]', 'how many', parseCount)
    .option('--json', 'print a JSON object for each')
    .option(...SOCKET_OPTION)
    .action(async (name: string, count = 1, { json, ...options }: Socket & { json?: boolean }) => {
      await using system = openSystem(options);
      for (let each = 0; each < count; each++) {
        const { clusterid, vmid, host, ip } = await system.seed({ checkpoint: name }); // it is to stay
        const reply = { clusterid, vmid, host, ip };
        process.stdout.write(`${json ? JSON.stringify(reply) : formatSeedReply(reply)}\n`);
      }
    });
}

function stateOf({ status, hostUp }: CheckpointInfo): string {
  return hostUp ? status : `${status}, host down`;
}

function dateOf({ createdAtMs }: CheckpointInfo): string {
  return new Date(createdAtMs).toISOString().slice(0, 19).replace('T', ' ');
}

function describe(found: CheckpointInfo): string {
  const { shape } = found;
  const facts: readonly (readonly [string, string])[] = [
    ['name', found.name],
    ['description', found.description],
    ['state', stateOf(found)],
    ['host', found.host],
    ['size', formatBytes(found.sizeBytes)],
    ['created', dateOf(found)],
    ['of VM', found.vm],
    ['image', shape.diskImage],
    ['vcpus', String(shape.vcpus)],
    ['memory', `${shape.memoryMib} MiB, ${found.presentPages} pages kept`],
    ['disk', found.diskBytes === 0 ? 'none' : formatBytes(found.diskBytes)],
    ['processor', found.accel],
    ['used by', found.usedBy.length === 0 ? 'nobody' : `cluster ${found.usedBy.join(', ')}`],
  ];
  return facts.map(([title, value]) => `${`${title}:`.padEnd(13)}${value}`.trimEnd() + '\n').join('');
}

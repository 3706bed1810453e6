// snowflock expose VM PORT[:HOSTPORT] | --remove VM PORT | --list

import { Command, InvalidArgumentError } from 'commander';
import { openSystem, SOCKET_OPTION } from '../sfld-socket.ts';
import { formatTable } from '../table.ts';
import { parseVm } from './arguments.ts';

interface Ports {
  readonly port: number;
  readonly hostPort?: number;
}

interface Options {
  readonly list?: boolean;
  readonly remove?: boolean;
  readonly json?: boolean;
  readonly socket?: string;
}

export function parsePorts(text: string): Ports {
  const [, port, hostPort] = /^(\d{1,5})(?::(\d{1,5}))?$/.exec(text) ?? [];
  const isPort = (value: number): boolean => value >= 1 && value <= 65535;
  if (!isPort(Number(port)) || (hostPort !== undefined && !isPort(Number(hostPort))))
    throw new InvalidArgumentError('It must be a port, or PORT:HOSTPORT, each from 1 to 65535.');
  return { port: Number(port), ...(hostPort === undefined ? {} : { hostPort: Number(hostPort) }) };
}

export function exposeCommand(): Command {
  const command = new Command('expose')
    .summary('lead a port of a host to a port of a VM')
    .description(
      "Leads a TCP port of the host of the cluster's master VM to a port of a VM of the cluster, until the VM ends. Prints where.\n" +
        'Without HOSTPORT the first free port from 20000 is taken.',
    )
    .argument('[vm]', 'clusterid:vmid', parseVm)
    .argument('[ports]', 'PORT of the VM, or PORT:HOSTPORT', parsePorts)
    .option('--list', 'print the exposed ports, of the VM or of all')
    .option('--remove', 'end it; open connections end, too')
    .option('--json', 'print JSON')
    .option(...SOCKET_OPTION);
  return command.action(async (vm: string | undefined, ports: Ports | undefined, options: Options) => {
    if (options.list) return list(vm, options);
    if (vm === undefined || ports === undefined)
      return command.error('error: a VM and a port are needed, or --list');
    await using system = openSystem(options);
    if (options.remove) return void (await system.vm(vm).hide(ports.port));
    const { host, address, hostPort } = await system.vm(vm).expose(ports.port, ports);
    const text = `${address}:${hostPort} on ${host}`;
    process.stdout.write(`${options.json ? JSON.stringify({ host, address, hostPort }) : text}\n`);
  });
}

async function list(vm: string | undefined, options: Options): Promise<void> {
  await using system = openSystem(options);
  const routers = await system.routers();
  const all = routers.flatMap(({ clusterid, host, address, problem, exposed }) =>
    exposed.map(({ vmid, port, hostPort }) => ({
      ...{ vm: `${clusterid}:${vmid}`, port, host, address, hostPort, problem },
    })),
  );
  const shown = all.filter((each) => vm === undefined || each.vm === vm);
  if (options.json) return void process.stdout.write(`${JSON.stringify(shown)}\n`);
  const columns = [
    { title: 'VM' },
    { title: 'PORT' },
    { title: 'AT' },
    { title: 'HOST' },
    { title: 'PROBLEM' },
  ];
  const rows = shown.map((each) => [
    ...[each.vm, String(each.port), `${each.address ?? '?'}:${each.hostPort}`, each.host, each.problem ?? ''],
  ]);
  process.stdout.write(`${formatTable(columns, rows).join('\n')}\n`);
}

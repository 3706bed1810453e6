// What is left on the machine: of the VMs of a lab that still runs, and of a lab that is gone. Empty lists are what every
// test ends with.

import { readdirSync, readFileSync, readlinkSync } from 'node:fs';
import { join, relative } from 'node:path';
import { listLinks, parseLinkName, runTool } from '@snowflock/network';
import { runCommand, type Lab } from '@snowflock/lab';
import { z } from 'zod';

/** What a host has when no VM ever ran on it, relative to its directory; logs may be there or not. */
export const HOST_FILES =
  /^(sfld|sfmd)\.(cfg|log)$|^state\/sfld-journal\/boot$|^tls\/|^run\/(sfld\.(sock|pid)|memserver\.log|memtap\.log|router\.log)$|^master-run\/|^master-state\//;

/** File system name of a disk that a test itself gave to a host. */
export const TEST_DISK = 'sf-test-disk';

const Record = z.object({
  hosts: z.array(
    z.object({ k: z.number(), holderPid: z.number(), daemons: z.record(z.string(), z.number()) }),
  ),
});

function commandLine(pid: number): string | undefined {
  try {
    if (/^State:\s*[ZX]/m.test(readFileSync(`/proc/${pid}/status`, 'utf8'))) return undefined;
    return readFileSync(`/proc/${pid}/cmdline`, 'utf8').replaceAll('\0', ' ').trim().slice(0, 160);
  } catch {
    return undefined; // it has just ended
  }
}

function filesBelow(directory: string): string[] {
  return readdirSync(directory, { recursive: true, withFileTypes: true })
    .filter((entry) => !entry.isDirectory())
    .map((entry) => join(entry.parentPath, entry.name));
}

/** Processes, devices, mounts and files of VMs on the hosts of a lab that is up. */
export async function vmLeftovers(lab: Lab): Promise<string[]> {
  const found: string[] = [];
  const record = Record.parse(JSON.parse(readFileSync(join(lab.dir, 'lab.json'), 'utf8')));
  for (const { k, holderPid, daemons } of record.hosts) {
    const host = lab.hosts[k - 1];
    if (!host) continue;
    const own = new Set([holderPid, ...Object.values(daemons)]);
    const { stdout } = await runCommand(['ip', 'netns', 'pids', host.netns]);
    for (const pid of stdout.split('\n').filter(Boolean).map(Number)) {
      const command = own.has(pid) ? undefined : commandLine(pid);
      if (command !== undefined) found.push(`${host.name}: process ${pid} ${command}`);
    }
    for (const link of await listLinks({ netns: host.netns }))
      if (parseLinkName(link)) found.push(`${host.name}: device ${link}`);
    const tables = await runTool('nft', ['list', 'tables'], { netns: host.netns });
    for (const table of tables.split('\n').filter((line) => line.includes('snowflock')))
      found.push(`${host.name}: nftables ${table}`);
    for (const line of readFileSync(`/proc/${holderPid}/mountinfo`, 'utf8').split('\n')) {
      const point = line.split(' ')[4] ?? '';
      const own = line.includes(` - tmpfs ${TEST_DISK} `);
      if (point.startsWith(`${host.dir}/`) && !own) found.push(`${host.name}: mount ${point}`);
    }
    for (const file of filesBelow(host.dir))
      if (!HOST_FILES.test(relative(host.dir, file))) found.push(`${host.name}: file ${file}`);
  }
  return found;
}

/** Processes that a lab, now gone, has left: by where they run, what they were started with, and what they hold open. */
export function processesOf(directory: string): string[] {
  const found: string[] = [];
  for (const entry of readdirSync('/proc').filter((name) => /^\d+$/.test(name))) {
    const pid = Number(entry);
    const command = pid === process.pid ? undefined : commandLine(pid);
    if (command === undefined) continue;
    try {
      const environment = readFileSync(`/proc/${pid}/environ`, 'latin1').split('\0');
      const owned = environment.some((line) => line.startsWith(`SNOWFLOCK_OWNER=${directory}/`));
      const open = readdirSync(`/proc/${pid}/fd`).some((fd) =>
        readlinkSync(`/proc/${pid}/fd/${fd}`).startsWith(`${directory}/`),
      );
      if (owned || open || command.includes(`${directory}/`)) found.push(`process ${pid} ${command}`);
    } catch {
      continue; // it has just ended, or closed the descriptor
    }
  }
  return found;
}

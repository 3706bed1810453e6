// What a lab looks like from outside: its processes, and what sfmd says. Changes nothing.

import { ControlClient, SystemState } from '@snowflock/protocol';
import { wholeness } from './claim.ts';
import { findLeftovers } from './leftovers.ts';
import { checkLabName, DEFAULT_LAB_NAME, hostAddress, hostName, hostSocket } from './names.ts';
import { isAlive, readRecord, type HostRecord } from './record.ts';

const STATE_TIMEOUT_MS = 3000;

export interface LabHostStatus {
  readonly k: number;
  readonly name: string;
  readonly address: string;
  readonly socketPath: string;
  /** pid, or null when it is not alive (or, for sfmd, not on this host). */
  readonly sfld: number | null;
  readonly sfmd: number | null;
  /** What sfmd says; null when it did not answer. */
  readonly up: boolean | null;
  readonly vms: number | null;
}

export interface LabStatus {
  readonly name: string;
  /** 'broken': there is something of it, but it does not work; `problem` says what. */
  readonly status: 'none' | 'up' | 'broken';
  readonly problem: string | null;
  readonly cpus: number | null;
  readonly ramBytes: number | null;
  readonly hosts: readonly LabHostStatus[];
}

export async function labStatus(name: string = DEFAULT_LAB_NAME): Promise<LabStatus> {
  const nothing = { name, cpus: null, ramBytes: null, hosts: [] };
  if ((await findLeftovers(checkLabName(name))).length === 0)
    return { ...nothing, status: 'none', problem: null };
  const record = await readRecord(name);
  if (!record) return { ...nothing, status: 'broken', problem: 'its record is missing' };
  let problem = wholeness(record) ?? null;
  let state: SystemState | undefined;
  if (record.hosts.some((host) => isAlive(host, host.daemons.sfld)))
    try {
      state = await askState(name);
    } catch (error) {
      problem ??= `sfmd does not answer: ${error instanceof Error ? error.message : String(error)}`;
    }
  const hosts = record.hosts.map((host) => hostStatus(name, host, state));
  const absent = hosts.find(({ up }) => up === false);
  if (absent) problem ??= `sfmd has no sign of life from ${absent.name}`;
  const { cpus, ramBytes } = record;
  return { name, status: problem === null ? 'up' : 'broken', problem, cpus, ramBytes, hosts };
}

async function askState(name: string): Promise<SystemState> {
  using client = new ControlClient({ socketPath: hostSocket(name, 1) });
  const path = '/v1/master/state';
  return await client.request({ method: 'GET', path, reply: SystemState, timeoutMs: STATE_TIMEOUT_MS });
}

function hostStatus(name: string, host: HostRecord, state: SystemState | undefined): LabHostStatus {
  const { k, daemons } = host;
  const known = state?.hosts.find((candidate) => candidate.host === hostName(k));
  return {
    k,
    name: hostName(k),
    address: hostAddress(k),
    socketPath: hostSocket(name, k),
    sfld: isAlive(host, daemons.sfld) ? (daemons.sfld ?? null) : null,
    sfmd: isAlive(host, daemons.sfmd) ? (daemons.sfmd ?? null) : null,
    up: state ? (known?.up ?? false) : null,
    vms: known?.vms ?? null,
  };
}

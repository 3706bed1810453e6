// What the jobs of sfmd that ask hosts and take their time (checkpoints, migrations) have of it.

import type { Command, Effect, SystemData } from '@snowflock/cluster';
import type { HostAddress, Hosts } from './hosts.ts';

export interface JobPorts {
  readonly system: () => SystemData;
  readonly hosts: Hosts;
  readonly addressOf: (host: string) => HostAddress;
  readonly apply: (command: Command) => Effect[];
  /** What must not be forgotten: again until it could be stored. */
  readonly applySometime: (command: Command) => void;
  readonly closing: AbortSignal;
}

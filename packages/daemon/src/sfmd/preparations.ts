// Carries out preparations in the background while their ticket waits to be used; each answer is a command of its own.

import { toSnowflockError } from '@snowflock/protocol';
import { relayPlace, type Command, type Effect } from '@snowflock/cluster';
import type { Log } from '../log.ts';
import type { HostAddress, Hosts } from './hosts.ts';
import type { PageWays } from './page-ways.ts';

export type Preparation = Extract<Effect, { type: 'prepare-source' | 'prepare-clones' }>;

export interface PreparationPorts {
  readonly hosts: Hosts;
  readonly addressOf: (host: string) => HostAddress;
  readonly ways: Pick<PageWays, 'of' | 'multicastHostOf'>;
  /** Clones on other hosts than their parent fetch everything. */
  readonly detach: boolean;
  /** What some clones needed is fetched ahead by others. */
  readonly push: boolean;
  /** Over a narrow link, pages that nobody waits for yet are compressed. */
  readonly compress: boolean;
  readonly apply: (command: Command) => void;
  readonly log: Log;
  readonly closing: AbortSignal;
}

/** Tells the host; its answer, or its silence, arrives as 'prepared'. */
export function startPreparation(effect: Preparation, ports: PreparationPorts): void {
  const { apply, log, closing } = ports;
  const { clusterid, ticket, host } = effect;
  const part = effect.type === 'prepare-source' ? 'source' : 'clones';
  const answered = (error: string | null): void =>
    apply({ type: 'prepared', clusterid, ticket, host, part, error });
  callHost(effect, ports).then(
    () => answered(null),
    (error: unknown) => {
      if (closing.aborted) return;
      const { message } = toSnowflockError(error);
      log.warn({ host, clusterid, ticket, reason: message }, `preparing the ${part} failed`);
      answered(message);
    },
  );
}

async function callHost(effect: Preparation, ports: PreparationPorts): Promise<void> {
  const { hosts, addressOf, ways, closing } = ports;
  const { clusterid, ticket, targets } = effect;
  const at = addressOf(effect.host);
  const parentHost = effect.type === 'prepare-source' ? effect.host : effect.parentHost;
  const way = ways.of({ parentHost, targets });
  const multicastHost = way === 'multicast' ? ways.multicastHostOf(effect.host) : undefined;
  if (effect.type === 'prepare-source')
    return hosts.prepareSource(
      at,
      {
        ...{ clusterid, vmid: effect.vmid, ticket, targets: [...targets], multicastHost },
        // copying everything says nothing of what is needed
        push: ports.push && !ports.detach,
      },
      closing,
    );
  const { shape, diskBytes } = effect;
  const clones = [...effect.clones];
  const parent = addressOf(parentHost);
  const place = way === 'relay' ? relayPlace(effect.host, effect) : null;
  const relay = place && {
    via: place.via === null ? null : addressOf(place.via),
    feeds: [...place.feeds],
  };
  return hosts.prepareClones(
    at,
    {
      ...{ clusterid, ticket, shape, diskBytes, clones, parent, multicastHost, compress: ports.compress },
      ...(relay ? { relay } : {}),
      ...(ports.detach && effect.host !== parentHost ? { detach: true } : {}),
    },
    closing,
  );
}

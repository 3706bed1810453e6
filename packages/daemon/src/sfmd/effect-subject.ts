// What an effect is about, for the log: as far as its own fields do not say it.

import type { Effect, SystemData } from '@snowflock/cluster';
import { subjectFields, type LogSubject } from '../log.ts';

export function effectSubject(system: SystemData, effect: Effect): LogSubject {
  if (effect.type === 'granted') {
    const { ticket } = effect.grant;
    const cluster = Object.values(system.clusters).find(
      ({ tickets }) => ticket !== null && ticket in tickets,
    );
    return subjectFields({ clusterid: cluster?.clusterid, ticket });
  }
  if (effect.type === 'start-master') return { vmid: 0 };
  return {};
}

// GET sfmd /v1/events: what happens in the system, in order, as Server-Sent Events. The id of each goes into `Last-Event-ID` of
// whoever connects again; `?cluster=N` leaves out what is about other clusters, and hosts.

import { z } from 'zod';

const clusterid = z.int().min(0);
const ofTicket = { clusterid, ticket: z.string() };
const ofClone = { ...ofTicket, vmid: z.int().min(1), host: z.string() };

export const SystemEvent = z.discriminatedUnion('type', [
  /** What came before is not known here (any more): read /v1/state. Always first for a Last-Event-ID that is too old. */
  z.object({ type: z.literal('gap') }),
  z.object({ type: z.literal('cluster-started'), clusterid, host: z.string() }),
  z.object({ type: z.literal('cluster-ended'), clusterid }),
  /** Its host stopped answering; the cluster goes on when it is back. */
  z.object({ type: z.literal('master-lost'), clusterid, host: z.string(), reason: z.string() }),
  z.object({ type: z.literal('ticket-granted'), ...ofTicket, allowed: z.int().min(1) }),
  z.object({ type: z.literal('ticket-ended'), ...ofTicket, how: z.enum(['merged', 'disposed']) }),
  z.object({ type: z.literal('fork-begun'), ...ofTicket }),
  z.object({ type: z.literal('clone-running'), ...ofClone }),
  z.object({ type: z.literal('clone-exited'), ...ofClone, reason: z.string() }),
  z.object({ type: z.literal('clone-lost'), ...ofClone, reason: z.string() }),
  z.object({
    type: z.literal('vm-migrated'),
    clusterid,
    vmid: z.int().min(0),
    from: z.string(),
    to: z.string(),
  }),
  z.object({ type: z.literal('host-up'), host: z.string() }),
  z.object({ type: z.literal('host-down'), host: z.string() }),
]);
export type SystemEvent = z.infer<typeof SystemEvent>;

// What a stored row must be. What does not fit was not written by sfmd, or not by this release.

import { z } from 'zod';
import { HeldCheckpoint, TicketRequest, VmShape, VmStatus } from '@snowflock/protocol';
import type { EntityKind } from '@snowflock/cluster';

const id = z.int().min(0);
const text = z.string();

export const STORED_ROWS: Record<EntityKind, z.ZodType<Record<string, unknown>>> = {
  system: z.strictObject({ nextClusterid: id, starts: id.default(0) }),
  host: z.strictObject({
    host: text,
    cpus: id,
    ramBytes: id,
    shrunk: z.boolean(),
    lent: z.strictObject({ cpus: id, ramBytes: id }).nullable(),
    address: text.nullable(),
    sfldPort: id.nullable(),
    accel: z.enum(['kvm', 'tcg']).nullable(),
    instance: text.nullable(),
    up: z.boolean(),
  }),
  cluster: z.strictObject({
    clusterid: id,
    shape: VmShape,
    diskBytes: id,
    nextVmid: id,
    closing: z.boolean(),
    checkpoint: z.strictObject({ name: text, id: text, host: text, ticket: text }).nullable().default(null),
  }),
  past: z.strictObject({
    clusterid: id,
    tickets: z.array(z.strictObject({ ticket: text, how: z.enum(['merged', 'disposed']) })),
  }),
  vm: z.strictObject({
    clusterid: id,
    vmid: id,
    host: text,
    vcpus: id,
    memoryMib: id,
    ticket: text.nullable(),
    status: VmStatus,
    reason: text.nullable(),
    left: z
      .strictObject({ how: z.enum(['exited', 'ended']), status: z.int().nullable(), resultBytes: id })
      .nullable()
      .default(null),
    ranMs: z.number().min(0).nullable().default(null),
    unreachable: z.boolean(),
    freed: z.boolean(),
  }),
  ticket: z.strictObject({
    clusterid: id,
    ticket: text,
    owner: id,
    requestId: text,
    allowed: id,
    delivered: z.boolean(),
    redemption: text.nullable(),
    launched: z.boolean(),
    forkedUnixMs: z.int().nullable().default(null),
    vmids: z.array(id),
    preparing: z.array(text),
    sourcePreparing: z.boolean(),
    sourceError: text.nullable(),
    status: z.enum(['unused', 'outstanding']),
  }),
  frozen: z.strictObject({ clusterid: id, ticket: text, host: text }),
  migration: z.strictObject({
    ...{ clusterid: id, ticket: text, vmid: id, vcpus: id, memoryMib: id, from: text, to: text },
    ...{ moved: z.boolean(), ending: z.boolean(), held: z.array(text) },
  }),
  waiting: z.strictObject({ requestId: text, clusterid: id, owner: id, request: TicketRequest, order: id }),
  checkpoint: HeldCheckpoint.extend({
    host: text,
    status: z.enum(['writing', 'ready', 'missing', 'deleting']),
  }).strict(),
  cleanup: z.strictObject({ host: text, clusterid: id, ticket: text.nullable(), vmid: id.nullable() }),
};

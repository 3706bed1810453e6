// Named checkpoints: what is stored of them (docs/checkpoint-format.md) and what is said about them.
//
//   operator ──create──▶ sfmd ──▶ sfld of the VM's host: freezes, goes on, writes   ──told──▶ sfmd: ready
//   operator ──seed──▶ sfmd ──▶ sfld that holds it: serves    and    sfld of the new VM: starts it

import { z } from 'zod';
import { ticketId, VmShape, vmName } from './vm-shape.ts';

/** Also a directory's name, so no dot first, and nothing that a shell would read otherwise. */
export const checkpointName = z
  .string()
  .regex(
    /^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$/,
    'must be up to 64 letters, digits, dots, dashes and underscores, and begin with a letter or digit',
  );
const description = z.string().max(1024);
const sha256 = z.string().regex(/^[0-9a-f]{64}$/);
const bytes = z.int().min(0);

/** Bounds the list that a host reports, and what an operator can fill a disk with unnoticed. */
export const CHECKPOINTS_PER_HOST_MAX = 256;
/** RAM pages that a VM needs first; as in a descriptor. */
const PREFETCH_PAGES_MAX = 4096;

/** Version of the directory's format that is written. What a reader knows of older ones: docs/checkpoint-format.md. */
export const CHECKPOINT_VERSION = 1;

/** `manifest.json`: the last file that is written of a checkpoint. */
export const CheckpointManifest = z.object({
  format: z.literal('snowflock-checkpoint'),
  version: z.literal(CHECKPOINT_VERSION),
  /** Tells it from another one that had the same name before. */
  id: z.uuid(),
  name: checkpointName,
  description,
  /** Wall clock of its host, ms since 1970. */
  createdAtMs: z.int().min(0),
  /** Which VM it was made of, and where. */
  vm: vmName,
  host: z.string(),
  shape: VmShape,
  accel: z.enum(['kvm', 'tcg']),
  /** The guest waits for the identity frame with this id. */
  forkId: z.int().min(1).max(0xffffffff),
  ramBytes: z.int().min(1),
  /** As the guest sees it; 0: none. */
  diskBytes: bytes,
  presentPages: bytes,
  prefetch: z.array(z.int().min(0)).max(PREFETCH_PAGES_MAX),
  files: z.object({
    /** Device state, zstd. */
    device: z.object({ bytes, sha256 }),
    /** Page files; every page has a checksum of its own in them. */
    ram: z.object({ bytes }),
    disk: z.object({ bytes }).nullable(),
  }),
});
export type CheckpointManifest = z.infer<typeof CheckpointManifest>;

/** What a host tells of a checkpoint that is whole and on its disk. */
export const HeldCheckpoint = CheckpointManifest.pick({
  id: true,
  name: true,
  description: true,
  createdAtMs: true,
  vm: true,
  shape: true,
  accel: true,
  diskBytes: true,
  presentPages: true,
}).extend({ sizeBytes: bytes });
export type HeldCheckpoint = z.infer<typeof HeldCheckpoint>;

/** POST sfmd /v1/checkpoints */
export const CheckpointRequest = z.object({
  name: checkpointName,
  vm: vmName,
  description: description.default(''),
  /** Answer when it is on the disk; otherwise as soon as the VM goes on. */
  wait: z.boolean().default(true),
});
export type CheckpointRequest = z.infer<typeof CheckpointRequest>;

/** What sfmd knows of a checkpoint. */
export const CheckpointInfo = HeldCheckpoint.extend({
  host: z.string(),
  /** missing: its host reports, and does not have it any more. */
  status: z.enum(['writing', 'ready', 'missing']),
  hostUp: z.boolean(),
  /** Clusters that were started from it and are still there. */
  usedBy: z.array(z.int()),
});
export type CheckpointInfo = z.infer<typeof CheckpointInfo>;

/** POST sfmd /v1/clusters with this in place of a VmShape. */
export const SeedFromCheckpoint = z.object({ checkpoint: checkpointName });
export const SeedRequest = z.union([VmShape, SeedFromCheckpoint]);
export type SeedRequest = z.infer<typeof SeedRequest>;

/** POST sfld /v1/checkpoints — sfmd has the host of a VM write a checkpoint of it; answers when the VM goes on. */
export const WriteCheckpoint = z.object({
  id: z.uuid(),
  name: checkpointName,
  description,
  vm: vmName,
});
export type WriteCheckpoint = z.infer<typeof WriteCheckpoint>;

/** Of the instant: how long the VM did not run. */
export const CheckpointFrozen = z.object({ pauseMs: z.number() });
export type CheckpointFrozen = z.infer<typeof CheckpointFrozen>;

/** POST sfmd /v1/hosts/:host/checkpoints/:name — by its host, when it is on the disk or will never be. */
export const CheckpointWritten = z.discriminatedUnion('ok', [
  z.object({ ok: z.literal(true), held: HeldCheckpoint }),
  z.object({ ok: z.literal(false), id: z.uuid(), reason: z.string().max(4096) }),
]);
export type CheckpointWritten = z.infer<typeof CheckpointWritten>;

/** Answer to CheckpointRequest. */
export const CheckpointReply = CheckpointInfo.extend({ pauseMs: z.number() });
export type CheckpointReply = z.infer<typeof CheckpointReply>;

/** GET sfld /v1/sources/:ticket/descriptor — what the host of a new master VM needs to start it: a binary descriptor (descriptor.ts). */
export const SourceDescriptor = z.object({ descriptor: z.base64() });
export type SourceDescriptor = z.infer<typeof SourceDescriptor>;

/** POST sfld /v1/checkpoints/:name/serve — the host that holds it serves it to the host of a new master VM. */
export const ServeCheckpoint = z.object({
  id: z.uuid(),
  clusterid: z.int().min(0),
  ticket: ticketId,
  /** The host that alone is given the descriptor and the key. */
  target: z.string(),
});
export type ServeCheckpoint = z.infer<typeof ServeCheckpoint>;

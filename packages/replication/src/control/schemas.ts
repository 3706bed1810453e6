// The control messages of memserver and memtap, as both ends check them.

import { PAGE_BYTES, PAGE_KEY_BYTES } from '@snowflock/protocol/pages';
import { z } from 'zod';
import { NEEDS_MAX } from '../needs.ts';

/** A VM's RAM lies in a handful of blocks; more ranges is a mistake. */
const MAX_RANGES = 64;
/** Sources of one snapshot: its memserver and hosts that hold copies. */
const MAX_SOURCES = 64;
/** Pages named one by one; beyond it a run or a map says it better. */
const MAX_PREFETCH_PAGES = 4096;
/** In the order in which they will be needed. */
const prefetchPages = z.array(z.number().int().min(0)).max(MAX_PREFETCH_PAGES);
const wholePages = z.number().int().positive().multipleOf(PAGE_BYTES).max(Number.MAX_SAFE_INTEGER);

/** NEEDS_MAX pages in base64. */
const NEEDS_MAX_CHARACTERS = 4 * Math.ceil((4 * NEEDS_MAX) / 3);

const path = z.string().min(1).max(4096);

export const keyHexSchema = z.string().regex(new RegExp(`^[0-9a-fA-F]{${2 * PAGE_KEY_BYTES}}$`));

/** A user address, page-aligned, hexadecimal with or without 0x. */
export const addressSchema = z
  .string()
  .regex(/^(0x)?[0-9a-fA-F]{1,12}$/)
  .transform((text) => Number.parseInt(text, 16))
  .refine((address) => address % PAGE_BYTES === 0, 'not page-aligned');

/** Of this host's interface for pages that go to many hosts at once (docs/mcdist.md); absent: all goes by unicast. */
const multicastAddressSchema = z.ipv4().optional();

const filePath = z.string().min(1).max(4096);
const pageFile = z.object({ path: filePath, pageCount: z.number().int().min(0) });
/** What a memtap of this host serves, and a file with the serialised presence map of its RAM. */
const memtapFiles = z.object({
  ramPath: path,
  presencePath: path,
  disk: z.object({ path, pageCount: z.number().int().positive() }).optional(),
});

export const memserverRequestSchema = z.discriminatedUnion('op', [
  z.object({
    op: z.literal('configure'),
    keyHex: keyHexSchema,
    multicastAddress: multicastAddressSchema,
    /** What an earlier fork's clones needed (memserver/need-log.ts), in base64; absent: clients are told of no needs, not even of each other's. */
    needs: z.string().max(NEEDS_MAX_CHARACTERS).optional(),
  }),
  z.object({
    op: z.literal('freeze'),
    pid: z.number().int().positive(),
    ramRanges: z
      .array(z.object({ start: addressSchema, length: wholePages }))
      .min(1)
      .max(MAX_RANGES),
    disk: z
      .object({
        format: z.enum(['qcow2', 'raw']),
        path,
        sizeBytes: z.number().int().positive(),
      })
      .optional(),
    /** When the frozen VM is itself a clone: the RAM file of its memtap, and a file with that snapshot's serialised presence map. */
    upstream: z.object({ ramPath: path, presencePath: path }).optional(),
    /** Frozen process of an earlier fork of the same VM, to be compared with. */
    earlierPid: z.number().int().positive().optional(),
  }),
  /** Writes the snapshot to page files; answers when they are on the disk. */
  z.object({
    op: z.literal('save'),
    /** Its id. */
    checkpoint: z.uuid(),
    ramPath: filePath,
    diskPath: filePath.optional(),
  }),
  /** Serves a checkpoint in place of a frozen process. */
  z.object({
    op: z.literal('open-checkpoint'),
    checkpoint: z.uuid(),
    ram: pageFile,
    disk: pageFile.optional(),
  }),
  /** Copies what a memtap of this host serves to page files, and then serves these. */
  z.object({
    op: z.literal('keep'),
    checkpoint: z.uuid(),
    from: memtapFiles,
    ram: filePath,
    disk: filePath.optional(),
  }),
  /** Passes on what a memtap of this host serves, and what it hears of needs. `controlPath`: its control socket. */
  z.object({ op: z.literal('relay'), from: memtapFiles, controlPath: path }),
  z.object({ op: z.literal('stats') }),
  z.object({ op: z.literal('learnt') }),
  z.object({ op: z.literal('stop') }),
]);
export type MemserverRequest = z.infer<typeof memserverRequestSchema>;

export const sourceSchema = z.object({
  address: z.string().min(1).max(255),
  port: z.number().int().min(1).max(65535),
});
export type PageSource = z.infer<typeof sourceSchema>;

const sourceFields = {
  sources: z.array(sourceSchema).min(1).max(MAX_SOURCES),
  keyHex: keyHexSchema,
  multicastAddress: multicastAddressSchema,
  /** RAM pages to fetch at once. */
  prefetch: prefetchPages.default([]),
};

export const memtapRequestSchema = z.discriminatedUnion('op', [
  z.object({ op: z.literal('connect'), ...sourceFields }),
  z.object({
    op: z.literal('attach'),
    ...sourceFields,
    presence: z.string(),
    /** RAM pages that the file of another memtap of this host has, too: a serialised presence map of them. */
    near: z.object({ ramPath: path, pages: z.string() }).optional(),
  }),
  /** The same pages, from now on from somewhere else. */
  z.object({ op: z.literal('move'), ...sourceFields }),
  /** RAM pages to fetch that nobody has asked for yet. */
  z.object({ op: z.literal('prefetch'), pages: prefetchPages }),
  /** From now on pages that others needed may be fetched as well. */
  z.object({ op: z.literal('push') }),
  /** For a relay: what others needed, from the `from`th page on. Answered when there is something, or after a while. */
  z.object({ op: z.literal('needed'), from: z.number().int().min(0).max(NEEDS_MAX) }),
  /** Answered when the rehearsal is over, or there is to be none. */
  z.object({ op: z.literal('rehearsed') }),
  /** Which pages have come so far, zero pages not among them. */
  z.object({ op: z.literal('arrived') }),
  z.object({ op: z.literal('stats') }),
  z.object({
    op: z.literal('set'),
    minWindowPages: z.number().int().min(0).max(256).optional(),
    maxWindowPages: z.number().int().min(0).max(256).optional(),
  }),
  z.object({ op: z.literal('stop') }),
]);
export type MemtapRequest = z.infer<typeof memtapRequestSchema>;

/** Serialised presence maps. */
export const arrivedReplySchema = z.object({ ram: z.string(), disk: z.string() });

const latencySchema = z.object({
  count: z.number(),
  minUs: z.number(),
  medianUs: z.number(),
  p99Us: z.number(),
  maxUs: z.number(),
  /** Time in all that somebody waited. */
  sumUs: z.number().default(0),
  /** Values up to each of PAGE_WAIT_BOUNDS_US; empty: of a process that an older sfld started. */
  buckets: z.array(z.number()).default([]),
});

export const freezeReplySchema = z.object({
  presence: z.string(),
  presentPages: z.number().int().min(0),
  /** Serialised presence map of the pages that are as in the earlier fork; absent: none was named, or it is gone. */
  unchanged: z.string().optional(),
});

const writtenPagesSchema = z.object({ bytes: z.number().int(), dataPages: z.number().int() });

export const saveReplySchema = z.object({ ram: writtenPagesSchema, disk: writtenPagesSchema.nullable() });
export type SavedPages = z.infer<typeof saveReplySchema>;

export const learntReplySchema = z.object({
  /** Pages of the first moments. */
  wakeUp: z.array(z.number().int().min(0)),
  needs: z.string(),
});

/** As needs.ts encodes them, in base64: all of them an earlier fork's, or none. */
export const neededReplySchema = z.object({
  needs: z.string().max(NEEDS_MAX_CHARACTERS),
  earlier: z.boolean(),
});

export const memserverStatsSchema = z.object({
  clients: z.number(),
  refusedClients: z.number(),
  failedHandshakes: z.number(),
  droppedClients: z.number(),
  requests: z.number(),
  errors: z.number(),
  sentBytes: z.number(),
  /** What went to all hosts at once; null: it was not told to. */
  multicast: z
    .object({
      /** Hosts that hear it now. */
      multicastMembers: z.number(),
      multicastPages: z.number(),
      /** Probes included. */
      multicastDatagrams: z.number(),
      multicastBytes: z.number(),
      /** Requests for pages that were on their way to everyone already. */
      lockstepPages: z.number(),
      /** Pages that went to single hosts after they had gone to all. */
      repairedPages: z.number(),
      /** Bytes a second that flow control allows now. */
      multicastRate: z.number(),
    })
    .nullable()
    .default(null),
  /** Of data, that went compressed. */
  compressedPages: z.number().default(0),
  pagesRead: z.number(),
  zeroPages: z.number(),
  holePages: z.number(),
  leasedPids: z.array(z.number()),
  frozenPid: z.number().nullable(),
  sourceLost: z.string().nullable(),
});
export type MemserverStats = z.infer<typeof memserverStatsSchema>;

export const memtapStatsSchema = z.object({
  attached: z.boolean(),
  /** Why nothing can be fetched any more, or null. */
  sourceLost: z.string().nullable(),
  /** READs that the kernel sent for pages that had to be fetched, and those answered from what was on its way already. */
  demandReads: z.number(),
  sharedReads: z.number(),
  demandPages: z.number(),
  demandBytes: z.number(),
  prefetchedPages: z.number(),
  prefetchedBytes: z.number(),
  /** Those of them that are the disk's. */
  demandDiskPages: z.number(),
  prefetchedDiskPages: z.number(),
  /** RAM pages copied from another memtap of this host. */
  nearPages: z.number().default(0),
  /** Prefetched pages that were thrown away because the store queue was full. */
  droppedPages: z.number(),
  /** READs of holes and pages known to be zero, answered without the network; and how many pages were so. */
  zeroReads: z.number(),
  zeroPages: z.number(),
  /** Pages that the source sent as zero although the presence map had them. */
  learnedZeroPages: z.number(),
  /** Pages of data that came compressed. */
  compressedPages: z.number().default(0),
  wireBytesReceived: z.number(),
  wireBytesSent: z.number(),
  heldReads: z.number(),
  interruptedReads: z.number(),
  reconnects: z.number(),
  openFiles: z.number(),
  missLatency: latencySchema,
  /** What came by multicast; null: the memtap was not told to listen. */
  multicast: z
    .object({
      hears: z.boolean(),
      bytes: z.number(),
      /** Pages that came so: those that somebody waited for, and those that nobody here had asked for. */
      awaitedPages: z.number(),
      unaskedPages: z.number(),
      /** Pages that were fetched ahead when somebody came to wait for them, and were asked for again as urgent. */
      hurriedPages: z.number(),
      /** Pages that were said to have been sent and did not come. */
      missedPages: z.number(),
      /** Datagrams dropped: seen before, and not the memserver's. */
      replayed: z.number(),
      foreign: z.number(),
    })
    .nullable()
    .default(null),
  /** Pages that others needed first (memtap/push.ts). */
  push: z
    .object({
      /** That the memserver told of. */
      toldPages: z.number(),
      /** Fetched ahead; of these, about so many were used. */
      pushedPages: z.number(),
      usedPages: z.number(),
      /** Not fetched, to see whether anybody comes for them; and of these, in blocks that somebody came for. */
      heldBackPages: z.number(),
      missedPages: z.number(),
    })
    .default({ toldPages: 0, pushedPages: 0, usedPages: 0, heldBackPages: 0, missedPages: 0 }),
  /** Bytes of pages that came on behalf of each process, and how long it waited, by pid. */
  byProcess: z.record(z.string(), z.object({ bytes: z.number(), waits: latencySchema })),
});
export type MemtapStats = z.infer<typeof memtapStatsSchema>;

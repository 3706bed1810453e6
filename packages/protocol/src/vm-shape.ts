// How VMs and tickets are named and what a VM looks like: what every other schema is made of.

import { z } from 'zod';

/** Limits that the schemas enforce; each bounds what one message can make a daemon allocate. */
export const VCPUS_MAX = 64;
export const MEMORY_MIB_MIN = 32;
export const MEMORY_MIB_MAX = 1024 * 1024;

export const ticketId = z.uuid();

/** `clusterid:vmid`, how people name a VM. */
export const vmName = z.string().regex(/^\d{1,8}:\d{1,5}$/);

/** What every VM of a cluster looks like; the master VM's seed configuration (manual section 4, sfseed). */
export const VmShape = z.object({
  /** Name of a built image, or the absolute path of a disk image. */
  diskImage: z.string().min(1).max(4096),
  vcpus: z.int().min(1).max(VCPUS_MAX),
  memoryMib: z.int().min(MEMORY_MIB_MIN).max(MEMORY_MIB_MAX),
});
export type VmShape = z.infer<typeof VmShape>;

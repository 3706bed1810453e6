// Fields that many messages have.

import { z } from 'zod';
import { VMID_MAX } from './addresses.ts';

export const hostName = z.string().regex(/^[A-Za-z0-9][A-Za-z0-9.:-]{0,252}$/);
/** Of TCP. */
export const port = z.int().min(1).max(65535);
export const vmid = z.int().min(0).max(VMID_MAX);
export const clusterid = z.int().min(0).max(0xfffffe);

// What crosses process boundaries about the networks of clusters.

import { z } from 'zod';
import { CLUSTERID_MAX, VMID_MAX } from './addresses.ts';
import { port } from './fields.ts';

/** More of them are one subnet. */
export const WHITELIST_MAX = 1024;

/** What the clusters of a system may reach outside, and how fast (manual, section 12). */
export const networkPolicy = z.object({
  /** IP addresses, subnets and DNS names. */
  whitelist: z.array(z.string().min(1).max(260)).max(WHITELIST_MAX),
  /** Mbit/s of each cluster in each direction; null: as fast as it goes. */
  capMbit: z.int().min(1).nullable(),
  /** Name servers that are asked for whitelisted names; empty: those of the host. */
  nameservers: z.array(z.ipv4()).max(3),
});
export type NetworkPolicy = z.infer<typeof networkPolicy>;

/** Of one cluster. */
export const EXPOSED_MAX = 256;

/** A port of a host that leads to one of a VM. */
export const ExposedPort = z.object({ vmid: z.int().min(0).max(VMID_MAX), port, hostPort: port });
export type ExposedPort = z.infer<typeof ExposedPort>;

/** All that a router is told, each time. */
export const RouterSettings = networkPolicy.extend({ exposed: z.array(ExposedPort).max(EXPOSED_MAX) });
export type RouterSettings = z.infer<typeof RouterSettings>;

/** What a host tells of the router of a cluster. */
export const RouterReport = z.object({
  clusterid: z.int().min(0).max(CLUSTERID_MAX),
  /** Why it does not route; null: it does. */
  problem: z.string().max(1000).nullable(),
  exposed: z.array(ExposedPort).max(EXPOSED_MAX),
});
export type RouterReport = z.infer<typeof RouterReport>;

/** GET sfmd /v1/routers — as the hosts told last; a host that is down tells nothing. */
export const RouterInfo = RouterReport.extend({ host: z.string(), address: z.string().nullable() });
export type RouterInfo = z.infer<typeof RouterInfo>;

/** PUT sfld /v1/vms/:vm/ports/:port — without a port of the host any free one is taken. Again: the same answer. */
export const ExposePort = z.object({ hostPort: port.optional() });
export type ExposePort = z.infer<typeof ExposePort>;

export const PortExposed = z.object({ host: z.string(), address: z.string(), hostPort: port });
export type PortExposed = z.infer<typeof PortExposed>;

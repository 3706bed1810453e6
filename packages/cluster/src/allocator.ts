// Where VMs go: the default allocator of the manual (section 9). Pure: the same rooms, request and random numbers give
// the same answer.
//
// The manual's two rules, and how they are read here:
//   1. "no host will see its resources overflowed": a VM goes only where its processors and its memory are free.
//   2. "no host will have more than one extra clone running than any other host": each VM goes to the host that runs the
//      fewest clones (of all clusters) among those with room; ties are broken at random. A host that is full cannot take
//      its share, and does not stop the others: the rule holds between hosts that had room. Hosts that were uneven before,
//      because clones of one ticket ended, are evened out by what comes next; nothing is moved.

/** What a host has left. */
export interface HostRoom {
  readonly host: string;
  readonly cpusFree: number;
  readonly ramFreeBytes: number;
  /** How many VMs more it may have. */
  readonly vmsFree: number;
  /** Clones that it runs or has promised. */
  readonly clones: number;
}

export interface AllocationRequest {
  /** VMs, or processors if `procs`. */
  readonly count: number;
  readonly procs: boolean;
  /** Of one VM; with `procs`, its most processors. */
  readonly vcpus: number;
  readonly ramBytes: number;
}

/** One VM. */
export interface Slot {
  readonly host: string;
  readonly vcpus: number;
}

/** At most what was asked for; less where there is not enough room. */
export interface Allocator {
  allocate(rooms: readonly HostRoom[], request: AllocationRequest, random: () => number): Slot[];
}

/** What slots count as in the terms of the request. */
export function allowedBy(slots: readonly Slot[], procs: boolean): number {
  return procs ? slots.reduce((sum, slot) => sum + slot.vcpus, 0) : slots.length;
}

/** Least loaded first. With `procs`, each VM takes as many processors as it may and its host has. */
export const defaultAllocator: Allocator = {
  allocate(rooms, request, random) {
    const left = rooms.map((room) => ({ ...room }));
    const slots: Slot[] = [];
    for (let missing = request.count; missing > 0;) {
      const need = request.procs ? 1 : request.vcpus;
      let best: (typeof left)[number] | null = null;
      let ties = 0;
      for (const room of left) {
        if (room.cpusFree < need || room.ramFreeBytes < request.ramBytes || room.vmsFree < 1) continue;
        if (best === null || room.clones < best.clones) {
          best = room;
          ties = 1;
        } else if (room.clones === best.clones) {
          // Each of n equals is kept with probability 1/n.
          ties += 1;
          if (random() * ties < 1) best = room;
        }
      }
      if (best === null) break;
      const vcpus = request.procs ? Math.min(missing, request.vcpus, best.cpusFree) : request.vcpus;
      best.cpusFree -= vcpus;
      best.ramFreeBytes -= request.ramBytes;
      best.clones += 1;
      best.vmsFree -= 1;
      slots.push({ host: best.host, vcpus });
      missing -= request.procs ? vcpus : 1;
    }
    return slots;
  },
};

/** Random numbers in [0, 1) that repeat for a seed (mulberry32, public domain, T. Ettinger). */
export function seededRandom(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 0x1_0000_0000;
  };
}

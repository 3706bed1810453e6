#!/usr/bin/env python3
"""A parallel map over clones of this VM.

    parallel_map.py CLONES LIMIT      counts the primes below LIMIT, in ranges that clones take turns at

Copy parallel_map(): the function and the items may be anything, for every clone has all that this program had in its memory.
"""

import json
import pickle
import sys

import snowflock


def parallel_map(function, items, nclones):
    """[function(item) for item in items], by up to nclones clones. What a lost clone did not finish is done here."""
    ticket, _allowed = snowflock.request_clone_ticket(nclones, min=1)
    vmids = [clone.vmid for clone in snowflock.read_ticket_info(ticket)]
    _nclones, vmid = snowflock.clone_master(ticket)  # returns here, and in every clone
    if vmid != 0:
        try:
            share = [function(item) for item in items[vmids.index(vmid) :: len(vmids)]]
            status, result = 0, pickle.dumps(share)
        except Exception as error:
            status, result = 1, repr(error).encode()
        snowflock.ic_exit(status, result)
    outcomes = snowflock.join(ticket)
    results = [None] * len(items)
    for turn, vmid in enumerate(vmids):
        outcome = outcomes[vmid]
        if outcome.status == 1:
            raise RuntimeError("in clone %d: %s" % (vmid, outcome.result.decode()))
        share = items[turn :: len(vmids)]
        done = outcome.how == "exited"
        results[turn :: len(vmids)] = pickle.loads(outcome.result) if done else [function(item) for item in share]
    return results


def count_primes(bounds):
    first, last = bounds
    return sum(n > 1 and all(n % d for d in range(2, int(n**0.5) + 1)) for n in range(first, last))


def main():
    nclones, limit = int(sys.argv[1]), int(sys.argv[2])
    step = max(1, limit // (8 * nclones))
    ranges = [(first, min(first + step, limit)) for first in range(0, limit, step)]
    counts = parallel_map(count_primes, ranges, nclones)
    print(json.dumps({"primes": sum(counts), "ranges": len(ranges)}))


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Short-read alignment over clones of this VM, with bowtie2 (Debian: bowtie2).

    align_clones.py CLONES INDEX READS.fq > ALIGNED.sam

INDEX is a bowtie2 index without its suffixes; it is read once, before the fork, so that every clone finds it in memory. The output is
byte for byte what one bowtie2 over all reads would write, but for the line that quotes its command. What a lost clone did not align is
aligned here.
"""

import glob
import os
import subprocess
import sys

import snowflock

LINES_OF_A_READ = 4


def align(index, reads):
    """SAM lines, of the header as well, as bytes."""
    command = ["bowtie2", "--quiet", "-x", index, "-U", "-"]
    return subprocess.run(command, input=b"".join(reads), stdout=subprocess.PIPE, check=True).stdout.splitlines(keepends=True)


def records(lines):
    return b"".join(line for line in lines if not line.startswith(b"@"))


def warm(index):
    for path in glob.glob(index + ".*"):
        with open(path, "rb") as f:
            while f.read(1 << 20):
                pass


def main():
    nclones, index, path = int(sys.argv[1]), os.path.abspath(sys.argv[2]), sys.argv[3]
    with open(path, "rb") as f:
        lines = f.readlines()
    reads = [b"".join(lines[at : at + LINES_OF_A_READ]) for at in range(0, len(lines), LINES_OF_A_READ)]
    warm(index)
    header = [line for line in align(index, reads[:1]) if line.startswith(b"@")]

    ticket, _allowed = snowflock.request_clone_ticket(nclones, min=1)
    vmids = [clone.vmid for clone in snowflock.read_ticket_info(ticket)]
    size = -(-len(reads) // len(vmids))
    shares = {vmid: reads[turn * size : (turn + 1) * size] for turn, vmid in enumerate(vmids)}
    _nclones, vmid = snowflock.clone_master(ticket)
    if vmid != 0:
        snowflock.ic_exit(result=records(align(index, shares[vmid])))

    outcomes = snowflock.join(ticket)
    sys.stdout.buffer.writelines(header)
    for vmid in vmids:
        outcome = outcomes[vmid]
        sys.stdout.buffer.write(outcome.result if outcome.how == "exited" else records(align(index, shares[vmid])))


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Protein search over clones: one warm VM forks, each clone searches its share of the queries, the master VM collects.

    blast_clones.py warm  DB [MEMORY_DIR]         put the database into memory and run one search
    blast_clones.py serial QUERIES RESULT         search everything in this VM
    blast_clones.py clones N QUERIES RESULT       the same search over N clones of this VM

Each prints one JSON object. Results are BLAST's tabular lines, sorted, so that both ways compare byte for byte.
"""

import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import time

MEMORY_DIR = "/dev/shm/blast"
PORT = 7000
MASTER_ADDRESS = "10.0.0.1"  # host number vmid + 1 of the cluster's network: the master VM
CONNECT_DEADLINE_S = 60
RESULT_DEADLINE_S = 1800


def read_fasta(path):
    with open(path) as f:
        return [">" + record for record in f.read().split(">") if record.strip()]


def blastp(queries):
    """Tabular hits of the queries, as sorted lines."""
    path = os.path.join(MEMORY_DIR, "queries.%d.faa" % os.getpid())
    with open(path, "w") as f:
        f.write("".join(queries))
    command = ["blastp", "-db", database(), "-query", path, "-outfmt", "6", "-evalue", "1e-10", "-num_threads", "1"]
    result = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    os.unlink(path)
    return sorted(result.stdout.splitlines(keepends=True))


def database():
    with open(os.path.join(MEMORY_DIR, "name")) as f:
        return os.path.join(MEMORY_DIR, f.read())


def shares(queries, count):
    """Deals the queries, longest first, so that every share is about as much work."""
    dealt = sorted(queries, key=len, reverse=True)
    return [dealt[i::count] for i in range(count)]


def warm(db, memory_dir=MEMORY_DIR):
    os.makedirs(memory_dir, exist_ok=True)
    directory, name = os.path.split(db)
    size = 0
    for entry in os.listdir(directory):
        if entry.startswith(name + "."):
            shutil.copy(os.path.join(directory, entry), memory_dir)
            size += os.path.getsize(os.path.join(directory, entry))
    with open(os.path.join(memory_dir, "name"), "w") as f:
        f.write(name)
    hits = blastp([">warm\nMKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQAPILSRVGDGTQDNLSGAEKAVQVKVKALPDAQ\n"])
    return {"databaseBytes": size, "hits": len(hits)}


def serial(queries, result):
    begin = time.monotonic()
    lines = blastp(queries)
    seconds = time.monotonic() - begin
    with open(result, "wb") as f:
        f.writelines(lines)
    return {"seconds": seconds, "queries": len(queries), "hits": len(lines)}


def receive(connection, size):
    data = b""
    while len(data) < size:
        part = connection.recv(size - len(data))
        if not part:
            raise ConnectionError("a clone's connection ended after %d of %d bytes" % (len(data), size))
        data += part
    return data


def work_in_clone(snowflock, ticket, queries, vmid):
    """Never returns: the clone reports and is gone."""
    vmids = [v for v, _ in snowflock.read_ticket_info(ticket)]
    share = vmids.index(vmid)
    data = b"".join(blastp(shares(queries, len(vmids))[share]))
    deadline = time.monotonic() + CONNECT_DEADLINE_S
    while True:
        try:
            with socket.create_connection((MASTER_ADDRESS, PORT), timeout=CONNECT_DEADLINE_S) as s:
                s.sendall(struct.pack("<II", share, len(data)) + data)
                s.shutdown(socket.SHUT_WR)
                s.recv(1)  # the master VM has it
            break
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)
    snowflock.ic_exit()


def over_clones(count, queries, result):
    import snowflock

    listener = socket.create_server(("", PORT), backlog=count)
    listener.settimeout(RESULT_DEADLINE_S)
    ticket, allowed = snowflock.request_vm_ticket(count)
    begin = time.monotonic()
    nclones, vmid = snowflock.clone_master(ticket)
    if vmid != 0:
        work_in_clone(snowflock, ticket, queries, vmid)
    forked = time.monotonic()
    results = {}
    while len(results) < nclones:
        connection, _ = listener.accept()
        with connection:
            share, size = struct.unpack("<II", receive(connection, 8))
            results[share] = receive(connection, size)
            connection.sendall(b".")
    for share in set(range(allowed)) - set(results):  # clones that could not be started: their share is done here
        results[share] = b"".join(blastp(shares(queries, allowed)[share]))
    seconds = time.monotonic() - begin
    snowflock.ic_join(ticket)
    lines = sorted(line for data in results.values() for line in data.splitlines(keepends=True))
    with open(result, "wb") as f:
        f.writelines(lines)
    return {
        "seconds": seconds,
        "forkSeconds": forked - begin,
        "ticket": ticket,
        "clones": nclones,
        "queries": len(queries),
        "hits": len(lines),
    }


def main(argv):
    if len(argv) in (2, 3) and argv[0] == "warm":
        figures = warm(*argv[1:])
    elif len(argv) == 3 and argv[0] == "serial":
        figures = serial(read_fasta(argv[1]), argv[2])
    elif len(argv) == 4 and argv[0] == "clones" and argv[1].isdigit() and int(argv[1]) > 0:
        figures = over_clones(int(argv[1]), read_fasta(argv[2]), argv[3])
    else:
        print(__doc__, file=sys.stderr)
        return 2
    print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

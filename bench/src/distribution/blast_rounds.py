"""The search of examples/blast in rounds, in the master VM: the first forks the VM, and its clones search their shares; in the next ones the same
clones search the same shares again, and then have everything. QUERIES is the argument; told what to do by lines, it answers each with one:

    ticket N      ticket TICKET ALLOWED
    fork TICKET   searched SECONDS HITS SHA256   from the call of clone_master to the last clone's hits
    again         searched SECONDS HITS SHA256   from the word to the first clone to the last clone's hits
    end           ended                          the clones have exited
"""

import hashlib
import socket
import struct
import sys
import time

import snowflock
from blast_clones import MASTER_ADDRESS, PORT, blastp, read_fasta, receive, shares

CONNECT_DEADLINE_S = 60
ROUND_DEADLINE_S = 1800
HEADER = struct.Struct("<II")


def work_in_clone(ticket, queries, vmid):
    """Never returns: searches until the master VM has heard enough."""
    vmids = [v for v, _ in snowflock.read_ticket_info(ticket)]
    share = vmids.index(vmid)
    mine = shares(queries, len(vmids))[share]
    master = None
    while True:
        hits = b"".join(blastp(mine))
        master = master or connect()
        master.sendall(HEADER.pack(share, len(hits)) + hits)
        if master.recv(1) != b"a":
            break
    master.close()
    snowflock.ic_exit()


def connect():
    deadline = time.monotonic() + CONNECT_DEADLINE_S
    while True:
        try:
            connection = socket.create_connection((MASTER_ADDRESS, PORT), timeout=CONNECT_DEADLINE_S)
            connection.settimeout(ROUND_DEADLINE_S)
            return connection
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


class Rounds:
    def __init__(self, queries):
        self.queries = queries
        self.listener = socket.create_server(("", PORT), backlog=16)
        self.listener.settimeout(ROUND_DEADLINE_S)
        self.ticket = None
        self.clones = []

    def fork(self, ticket):
        begin = time.monotonic()
        count, vmid = snowflock.clone_master(ticket)
        if vmid != 0:
            self.listener.close()
            work_in_clone(ticket, self.queries, vmid)
        self.ticket = ticket
        for _ in range(count):
            connection, _ = self.listener.accept()
            connection.settimeout(ROUND_DEADLINE_S)
            self.clones.append(connection)
        return self.collect(begin)

    def again(self):
        begin = time.monotonic()
        self.tell(b"a")
        return self.collect(begin)

    def end(self):
        self.tell(b"e")
        snowflock.ic_join(self.ticket)
        for connection in self.clones:
            connection.close()
        self.clones = []
        return "ended"

    def tell(self, word):
        for connection in self.clones:
            connection.sendall(word)

    def collect(self, begin):
        lines = []
        for connection in self.clones:
            _, size = HEADER.unpack(receive(connection, HEADER.size))
            lines += receive(connection, size).splitlines(keepends=True)
        seconds = time.monotonic() - begin
        return "searched %.3f %d %s" % (seconds, len(lines), hashlib.sha256(b"".join(sorted(lines))).hexdigest())


def main(path):
    rounds = Rounds(read_fasta(path))
    for line in sys.stdin:
        word, *rest = line.split()
        if word == "ticket":
            ticket, allowed = snowflock.request_vm_ticket(int(rest[0]))
            answer = "ticket %s %d" % (ticket, allowed)
        elif word == "fork":
            answer = rounds.fork(rest[0])
        elif word == "again":
            answer = rounds.again()
        else:
            answer = rounds.end()
        print(answer, flush=True)


main(sys.argv[1])

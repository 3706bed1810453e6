# The manual's Python session (sections 3 and 5), and every other call of the module. Prints one line for each step; a clone calls
# ic_exit only when all is right in it.
import random
import socket

import snowflock
from snowflock import SnowflockError


def show(name, value):
    print(name, repr(value), flush=True)


def refusal(call, *args):
    try:
        call(*args)
    except SnowflockError as error:
        return error.code
    return "no error"


(ticket, allowed) = snowflock.request_vm_ticket(2)
show("request_vm_ticket", (len(ticket), allowed))
show("list_tickets", {kind: len(tickets) for kind, tickets in snowflock.list_tickets().items()})
show("read_ticket_info", [tuple(info) for info in snowflock.read_ticket_info(ticket)])
result = snowflock.clone_master(ticket)
(nclones, vmid) = result
if vmid != 0:
    with open("/run/session", "w") as report:
        print(tuple(result), socket.gethostname(), snowflock.whoami()[1], refusal(snowflock.merge_master, ticket), file=report)
    while True:
        random.random()
show("clone_master", tuple(result))
show("list_tickets", {kind: len(tickets) for kind, tickets in snowflock.list_tickets().items()})
input()  # the test looks at the clones
show("merge_master", snowflock.merge_master(ticket))
show("clone_master again", refusal(snowflock.clone_master, ticket))

(ticket, allowed) = snowflock.request_clone_ticket(9, False, 1, False)
show("request_clone_ticket", allowed)
show("nothing left", tuple(snowflock.request_clone_ticket(1, block=False)))
show("dispose_ticket", snowflock.dispose_ticket(ticket))
show("clone_master", refusal(snowflock.clone_master, ticket))

(ticket, allowed) = snowflock.request_proc_ticket(2)
(nclones, vmid) = snowflock.clone_master(ticket)
if vmid != 0:
    snowflock.ic_exit()
show("ic_join", snowflock.ic_join(ticket))
show("ic_exit", refusal(snowflock.ic_exit))

(ticket, allowed) = snowflock.request_vm_ticket(2)
(nclones, vmid) = snowflock.clone_master(ticket)
if vmid != 0:
    for wrong in ({"status": "x"}, {"status": 2**31}, {"result": "text"}, {"result": b"", "result_file": "/"}, {"result_file": "/no/such"}):
        if refusal(lambda: snowflock.ic_exit(**wrong)) != "bad-request":
            wrong["status"] = 1
    if vmid % 2 == 0:
        snowflock.ic_exit(status=vmid, result=memoryview(b"%d" % vmid * 100000))
    snowflock.ic_exit(-1, result_file="/etc/hostname")
for wrong in ({"count": 0}, {"count": 1.5}, {"count": True}, {"deadline": -1}, {"deadline": "1"}, {"budget_bytes": 2**70}, {"budget_seconds": float("nan")}):
    show("join refused", refusal(lambda: snowflock.join(ticket, **wrong)))
outcomes = snowflock.join(ticket, deadline=60)
for (vmid, outcome) in sorted(outcomes.items()):
    right = outcome.result == (b"%d" % vmid * 100000 if vmid % 2 == 0 else b"snowflock\n")
    show("outcome", (vmid % 2, outcome.vmid == vmid, outcome.how, outcome.status == (vmid if vmid % 2 == 0 else -1), outcome.reason, right))
show("join again", refusal(snowflock.join, ticket))

for end in (snowflock.ic_kill, snowflock.merge_master, lambda ticket: snowflock.merge_all()):
    (ticket, allowed) = snowflock.request_vm_ticket(1)
    (nclones, vmid) = snowflock.clone_master(ticket)
    while vmid != 0:
        random.random()
    show("shutdown_cluster", refusal(snowflock.shutdown_cluster))
    show("end", end(ticket))
show("list_tickets", snowflock.list_tickets())
snowflock.shutdown_cluster()

# Section 5 of the manual, sentence by sentence, in a master VM of two processors with room for three clones. Prints a line for each:
# "ok SENTENCE" or "wrong SENTENCE: WHY". A clone calls ic_exit only if all is right in it.
import os
import time

import snowflock
from snowflock import SnowflockError

HOOKS = "/etc/snowflock/clone.d"


def code_of(call, *args, **named):
    try:
        return "no error, but %r" % (call(*args, **named),)
    except SnowflockError as error:
        return error.code


def be(wanted, got):
    assert wanted == got, "%r instead of %r" % (got, wanted)


def lists():
    tickets = snowflock.list_tickets()
    return tickets["unused"], tickets["outstanding"]


def idle():
    while True:
        time.sleep(60)


def fork_idle(count):
    (ticket, allowed) = snowflock.request_vm_ticket(count)
    if snowflock.clone_master(ticket)[1] != 0:
        idle()
    return ticket


def a_tuple():
    result = snowflock.request_clone_ticket(2, False, -1, True)
    (ticket, allowed_clones) = result
    be((36, 2, True), (len(ticket), allowed_clones, isinstance(result, tuple)))
    snowflock.dispose_ticket(ticket)


def less():
    (ticket, allowed) = snowflock.request_clone_ticket(9, False, 0, False)
    be(3, allowed)
    snowflock.dispose_ticket(ticket)


def between():
    (ticket, allowed) = snowflock.request_clone_ticket(9, False, 2, True)
    be(3, allowed)
    be((None, 0), tuple(snowflock.request_clone_ticket(2, False, 1, False)))
    snowflock.dispose_ticket(ticket)


def at_once():
    (ticket, allowed) = snowflock.request_clone_ticket(3, False, 3, False)
    begin = time.monotonic()
    be((None, 0), tuple(snowflock.request_clone_ticket(1, False, 0, False)))
    assert time.monotonic() - begin < 5, "it waited"
    snowflock.dispose_ticket(ticket)


def same_processors():
    (ticket, allowed) = snowflock.request_clone_ticket(2, False, 2, False)
    be([2, 2], [processors for (vmid, processors) in snowflock.read_ticket_info(ticket)])
    snowflock.dispose_ticket(ticket)


def processors():
    (ticket, allowed) = snowflock.request_clone_ticket(3, True, 3, False)
    be(3, allowed)
    be([1, 2], sorted(processors for (vmid, processors) in snowflock.read_ticket_info(ticket)))
    snowflock.dispose_ticket(ticket)


def vm_ticket():
    (ticket, allowed) = snowflock.request_vm_ticket(3)
    be([2, 2, 2], [processors for (vmid, processors) in snowflock.read_ticket_info(ticket)])
    snowflock.dispose_ticket(ticket)


def proc_ticket():
    (ticket, allowed) = snowflock.request_proc_ticket(1)
    be([1], [processors for (vmid, processors) in snowflock.read_ticket_info(ticket)])
    snowflock.dispose_ticket(ticket)


def in_flight():
    (unused, _) = snowflock.request_vm_ticket(1)
    outstanding = fork_idle(1)
    be(([unused], [outstanding]), lists())
    snowflock.merge_all()
    be(([], []), lists())


def returned():
    (ticket, allowed) = snowflock.request_vm_ticket(2)
    vmids = [vmid for (vmid, processors) in snowflock.read_ticket_info(ticket)]
    (nclones, vmid) = snowflock.clone_master(ticket)
    if vmid != 0:
        if nclones == 2 and vmid in vmids and snowflock.whoami()[1] == vmid and os.uname().nodename.endswith("-%d" % vmid):
            snowflock.ic_exit()
        idle()
    be(2, nclones)
    snowflock.ic_join(ticket)


def exception():
    os.makedirs(HOOKS, exist_ok=True)
    hook = os.path.join(HOOKS, "fails")
    with open(hook, "w") as script:
        script.write("#!/bin/sh\nexit 1\n")
    os.chmod(hook, 0o755)
    (ticket, allowed) = snowflock.request_vm_ticket(1)
    try:
        be("fork-failed", code_of(snowflock.clone_master, ticket))
    finally:
        os.unlink(hook)
    be(([], []), lists())


def disposed():
    (ticket, allowed) = snowflock.request_vm_ticket(3)
    snowflock.dispose_ticket(ticket)
    be("ticket-disposed", code_of(snowflock.clone_master, ticket))
    (ticket, allowed) = snowflock.request_clone_ticket(3, False, 3, False)
    be(3, allowed)
    snowflock.dispose_ticket(ticket)


def exits():
    be("not-clone", code_of(snowflock.ic_exit))


def joined():
    (ticket, allowed) = snowflock.request_vm_ticket(2)
    begin = time.monotonic()
    (nclones, vmid) = snowflock.clone_master(ticket)
    if vmid != 0:
        time.sleep(vmid % 2 * 2)
        snowflock.ic_exit()
    be(None, snowflock.ic_join(ticket))
    assert time.monotonic() - begin > 1.5, "it did not wait for the slower one"
    be(([], []), lists())
    (ticket, allowed) = snowflock.request_clone_ticket(3, False, 3, False)
    be(3, allowed)  # what they had is free
    snowflock.dispose_ticket(ticket)


def killed():
    ticket = fork_idle(1)
    be(None, snowflock.ic_kill(ticket))
    be(([], []), lists())


def merged():
    (first, second) = (fork_idle(1), fork_idle(1))
    be(None, snowflock.merge_master(first))
    be(([], [second]), lists())
    be("ticket-used", code_of(snowflock.clone_master, first))
    snowflock.merge_master(second)


def none_merges_all():
    fork_idle(1), fork_idle(1)
    be(None, snowflock.merge_master(None))
    be(([], []), lists())


def all_merged():
    fork_idle(1), fork_idle(1)
    be(None, snowflock.merge_all())
    be(([], []), lists())


def not_shut_down():
    ticket = fork_idle(1)
    be("tickets-outstanding", code_of(snowflock.shutdown_cluster))
    snowflock.merge_master(ticket)


def not_by_clones():
    (ticket, allowed) = snowflock.request_vm_ticket(1)
    if snowflock.clone_master(ticket)[1] != 0:
        if code_of(snowflock.shutdown_cluster) == "not-master":
            snowflock.ic_exit()
        idle()
    snowflock.ic_join(ticket)


SENTENCES = [
    ("request_clone_ticket returns a tuple (ticket, allowed_clones)", a_tuple),
    ("allowed_clones may be less than the number requested", less),
    ("if min is >= 0, the reservation can be between min and nclones", between),
    ("if block is false, the call returns immediately with what it can obtain, or nothing", at_once),
    ("the default is VMs each with the same number of processors as the caller", same_processors),
    ("with procs, nclones is a number of processors, and no VM has more than the originating VM", processors),
    ("request_vm_ticket requests n VM clones", vm_ticket),
    ("request_proc_ticket requests n processor clones", proc_ticket),
    ("list_tickets tells unused and outstanding tickets apart", in_flight),
    ("clone_master returns (nclones, vmid), vmid 0 in the master and its own in each clone", returned),
    ("if cloning fails altogether, an exception is raised", exception),
    ("dispose_ticket relinquishes the resources, and the ticket cannot be used afterwards", disposed),
    ("ic_exit is only callable by cloned VMs", exits),
    ("ic_join blocks until all clones have called ic_exit, and then they are destroyed", joined),
    ("ic_kill is synonymous with merge_master", killed),
    ("merge_master destroys all clones generated by the ticket", merged),
    ("merge_master(None) merges all outstanding tickets", none_merges_all),
    ("merge_all merges all clones from all active tickets", all_merged),
    ("shutdown_cluster will not proceed if there are outstanding tickets", not_shut_down),
    ("shutdown_cluster may only be called by a running master VM", not_by_clones),
]

for sentence, check in SENTENCES:
    try:
        check()
        print("ok", sentence, flush=True)
    except (AssertionError, SnowflockError) as error:
        print("wrong %s: %s" % (sentence, error), flush=True)
        snowflock.merge_all()
print("end", flush=True)
input()
snowflock.shutdown_cluster()

"""sfmpirun: all or nothing. Whatever happens, the clones that it made are gone when it ends."""

import ipaddress
import os
import shutil
import sys

import snowflock

from . import job
from .launcher import be_launcher
from .mpi import MPIEXEC, Place, library_of
from .options import HELP, USAGE, UsageError, parse
from .wire import LaunchError, Session

_IDENTITY = "/run/snowflock/identity"
_NOT_FOUND = 127
_NOT_EXECUTABLE = 126


def _say(text):
    sys.stderr.write("sfmpirun: %s\n" % text)


def main(argv):
    try:
        options = parse(argv[1:])
    except UsageError as error:
        _say(error)
        sys.stderr.write(USAGE + "\n")
        return 2
    if options is None:
        sys.stdout.write(HELP)
        return 0
    program = shutil.which(options.program)
    if program is None:
        there = os.path.exists(options.program)
        _say("%s %s" % (options.program, "cannot be executed" if there else "is not there; nothing was cloned"))
        return _NOT_EXECUTABLE if there else _NOT_FOUND
    try:
        library = library_of(program)
        if shutil.which(MPIEXEC[library]) is None:
            _say("%s, which %s needs, is not installed in this VM" % (MPIEXEC[library], options.program))
            return _NOT_FOUND
        return _over_clones(options, library, [os.path.abspath(program), *options.arguments])
    except (LaunchError, snowflock.SnowflockError) as error:
        _say(error)
        return 1


def _over_clones(options, library, program):
    session = Session.listen(options.ports)
    signals = job.Signals()
    ticket = None
    try:
        ticket, allowed = snowflock.request_clone_ticket(options.nprocs, procs=not options.vms, min=options.nprocs, block=False)
        if allowed < options.nprocs:
            what = "VMs" if options.vms else "processors"
            raise LaunchError("there are no resources for %d %s; try again later, or with fewer" % (options.nprocs, what))
        with job.run_directory(session) as directory:
            places = _fork(ticket, session, options.vms)
            if signals.received:
                return 128 + signals.received
            return job.run(session, directory, places, library, options.ports.get("listener"), program, signals)
    finally:
        session.close()
        if ticket is not None:
            _give_back(ticket)


def _fork(ticket, session, vms):
    """In the clones it does not return."""
    _, me = snowflock.whoami()
    infos = snowflock.read_ticket_info(ticket)
    nclones, vmid = snowflock.clone_master(ticket)
    if vmid != me:
        be_launcher(session, snowflock.ic_exit)
    session.close()
    if nclones < len(infos):
        raise LaunchError("%d of %d clones could not be started" % (len(infos) - nclones, len(infos)))
    subnet = _subnet(me)
    return [Place(str(subnet + info.vmid), 1 if vms else info.processors) for info in infos]


def _subnet(me):
    """What a vmid is added to for a VM's address: all addresses of a cluster follow from the vmid."""
    with open(_IDENTITY) as file:
        identity = dict(line.rstrip("\n").partition("=")[::2] for line in file if "=" in line)
    return ipaddress.IPv4Address(identity["ip"]) - me


def _give_back(ticket):
    try:
        unused = ticket in snowflock.list_tickets()["unused"]
        (snowflock.dispose_ticket if unused else snowflock.merge_master)(ticket)
    except snowflock.SnowflockError as error:
        if error.code != "no-such-ticket":
            _say("the clones of ticket %s may be left (sfmerge %s): %s" % (ticket, ticket, error))

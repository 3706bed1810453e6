"""The master VM's side of a job: clones, lifelines to them, a program, and an end to all."""

import ipaddress
import os
import selectors
import subprocess
import sys
import threading
from collections import namedtuple

import snowflock

from .keeper import Keeper
from .launcher import be_launcher
from .processes import adopt_orphans, end_with_parent, kill_children
from .signals import Interrupted, Signals
from .wire import JobError, Session

_IDENTITY = "/run/snowflock/identity"
# Beside this package.
_LAUNCH = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "sf-launch")
_STOP_SECONDS = 15

Place = namedtuple("Place", "address processors")
Place.__doc__ = "A clone, by its address, and how many processors it has."


class Job:
    """A program that has clones for as long as it runs: none is left when it ends, nor anything else.

    `name` is the program's, for what it says; `ports` are those that it wants: {name as in wire.PORTS: port}.
    """

    def __init__(self, name, ports):
        self._name = name
        self._signals = Signals()
        with self._signals.raising():
            self._keeper = Keeper(name)
        self._session = None
        try:
            self._session = Session.listen(ports)
            self.directory = self._keeper.directory
            self.launch = os.path.join(self.directory, "sf-launch")
            # Before the fork: orted, in a clone, looks whether its remote shell is there.
            self._session.save(os.path.join(self.directory, "session"))
            os.symlink(_LAUNCH, self.launch)
        except BaseException:
            self._end()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._end()

    def _end(self):
        if self._session is not None:
            self._session.close()
        self._signals.drain()
        if not self._keeper.give_back(self._signals.reader):
            self.say("its clones are still being destroyed")

    def say(self, text):
        sys.stderr.write("%s: %s\n" % (self._name, text))

    @property
    def status(self):
        """What a program that a signal ended exits with; None without a signal."""
        return 128 + self._signals.received if self._signals.received else None

    def fork(self, count, vms, least):
        """Clones with `count` processors, or as many VMs if `vms`; not fewer than `least` of them. The places of the clones, in which it
        does not return: there this process is their launcher.
        """
        with self._signals.raising():
            ticket, allowed = self._keeper.request(count, not vms, least)
            if ticket is None:
                raise JobError("there are no resources for %d %s; try again later, or with fewer" % (least, "VMs" if vms else "processors"))
            me = snowflock.whoami()[1]
            infos = snowflock.read_ticket_info(ticket)
            try:
                nclones, vmid = snowflock.clone_master(ticket)
                if vmid != me:
                    be_launcher(self._session, snowflock.ic_exit)
            except BaseException:
                # A signal that was about to be taken at the instant of the fork is taken in every clone, too.
                if snowflock.whoami()[1] != me:
                    be_launcher(self._session, snowflock.ic_exit)
                raise
        self._session.close()
        if nclones < len(infos):
            raise JobError("%d of %d clones could not be started" % (len(infos) - nclones, len(infos)))
        subnet = _subnet(me)
        return [Place(str(subnet + info.vmid), 1 if vms else info.processors) for info in infos]

    def run(self, places, command, environment, needs_all=True, helpers=()):
        """Runs a command; its exit status. `helpers`: what is to be started before, each a function that gets nothing. When a clone is
        lost the command is ended if it `needs_all`.
        """
        held = self._lifelines(places)
        try:
            adopt_orphans()
            try:
                for helper in helpers:
                    helper()
                # A session of its own: a terminal's Ctrl-C comes once, from here.
                program = subprocess.Popen(
                    command, env={**os.environ, **environment}, start_new_session=True, preexec_fn=end_with_parent
                )
                try:
                    return self._watch(program, held, needs_all)
                finally:
                    program.kill()
                    program.wait()
            finally:
                kill_children()  # also what has outlived the command; programs in clones end with their connections
        finally:
            for connection in held.values():
                connection.close()

    def _lifelines(self, places):
        """Connections to all clones, made at the same time; JobError unless there is one to each."""
        found = {}
        failures = []

        def connect(address):
            try:
                found[address] = self._session.connect(address, "manager", "hold", "-")
            except JobError as error:
                failures.append(error)

        threads = [threading.Thread(target=connect, args=(place.address,)) for place in places]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failures:
            for connection in found.values():
                connection.close()
            raise failures[0]
        for connection in found.values():
            connection.settimeout(None)
        return found

    def _watch(self, program, held, needs_all):
        """Until the program ends, which it is told to when a signal comes, or is given up."""
        ended = os.pidfd_open(program.pid)
        deadline = None
        with selectors.DefaultSelector() as selector:
            selector.register(ended, selectors.EVENT_READ)
            selector.register(self._signals.reader, selectors.EVENT_READ)
            for address, connection in held.items():
                selector.register(connection, selectors.EVENT_READ, address)
            try:
                while program.poll() is None:
                    ready = [key for key, _ in selector.select(deadline)]
                    for key in ready:
                        if key.data and program.poll() is None:
                            self._lost(key.data, needs_all)
                            selector.unregister(key.fileobj)
                    if self._signals.drain() and self._signals.received:
                        if deadline is not None:
                            break  # the second one
                        program.send_signal(self._signals.received)
                        deadline = _STOP_SECONDS
                    elif not ready:
                        break  # it had its time
            finally:
                os.close(ended)
        if self._signals.received:
            return self.status
        return program.returncode if program.returncode >= 0 else 128 - program.returncode

    def _lost(self, address, needs_all):
        what = "the clone with the address %s is lost" % address
        if needs_all:
            raise JobError(what + "; the program is ended")
        self.say(what + "; others do its work")


def _subnet(me):
    """What a vmid is added to for a VM's address: all addresses of a cluster follow from the vmid."""
    return ipaddress.IPv4Address(own_address()) - me


def own_address():
    """This VM's own, in the cluster's network."""
    with open(_IDENTITY) as file:
        identity = dict(line.rstrip("\n").partition("=")[::2] for line in file if "=" in line)
    return identity["ip"]


def main(run, name, argv):
    """What a job's program does: run(argv) in the end gives its exit status, and a refusal is one line."""
    try:
        return run(argv)
    except Interrupted as interrupted:
        return 128 + interrupted.number
    except (JobError, snowflock.SnowflockError, OSError) as error:
        sys.stderr.write("%s: %s\n" % (name, error))
        return 1

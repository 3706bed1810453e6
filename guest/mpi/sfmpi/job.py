"""The master VM's side of a run: lifelines to the clones, mpiexec, and an end to both."""

import contextlib
import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import threading

from .mpi import COMMANDS
from .processes import adopt_orphans, kill_children
from .wire import LaunchError

_STOP_SECONDS = 15
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Signals:
    """Signals are taken note of from here on, and looked at where something can be done about them."""

    def __init__(self):
        self.received = None
        self.reader, writer = os.pipe()
        os.set_blocking(self.reader, False)
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer)
        for number in _SIGNALS:
            signal.signal(number, self._note)

    def _note(self, number, _frame):
        self.received = number

    def drain(self):
        try:
            return len(os.read(self.reader, 64))
        except BlockingIOError:
            return 0


def lifelines(session, places):
    """Connections to all clones, made at the same time; LaunchError unless there is one to each."""
    found = {}
    failures = []

    def connect(address):
        try:
            found[address] = session.connect(address, "manager", "hold", "-")
        except LaunchError as error:
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


@contextlib.contextmanager
def run_directory(session):
    """A directory for this run alone. It is made before the fork: orted, in a clone, looks whether sfmpi-launch is there."""
    directory = tempfile.mkdtemp(prefix="sfmpi-")  # of mode 0700
    try:
        session.save(os.path.join(directory, "session"))
        os.symlink(os.path.realpath(sys.argv[0]), os.path.join(directory, "sfmpi-launch"))
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def run(session, directory, places, library, listener, program, signals):
    """Runs mpiexec; its exit status."""
    held = lifelines(session, places)
    try:
        command, environment, hosts = COMMANDS[library](directory, places, listener, program)
        with open(os.path.join(directory, "hosts"), "w") as file:
            file.write(hosts)
        adopt_orphans()
        # A session of its own: a terminal's Ctrl-C comes once, from here.
        mpiexec = subprocess.Popen(command, env={**os.environ, **environment}, start_new_session=True)
        try:
            return _watch(mpiexec, held, signals)
        finally:
            kill_children()  # also launchers that mpiexec has not waited for; programs end with their connections
            mpiexec.wait()
    finally:
        for connection in held.values():
            connection.close()


def _watch(mpiexec, held, signals):
    """Until mpiexec ends, which it is told to when a signal comes, or given up when a clone is lost."""
    ended = os.pidfd_open(mpiexec.pid)
    deadline = None
    with selectors.DefaultSelector() as selector:
        selector.register(ended, selectors.EVENT_READ)
        selector.register(signals.reader, selectors.EVENT_READ)
        for address, connection in held.items():
            selector.register(connection, selectors.EVENT_READ, address)
        try:
            while mpiexec.poll() is None:
                ready = [key for key, _ in selector.select(deadline)]
                lost = [key.data for key in ready if key.data]
                if lost and mpiexec.poll() is None:
                    raise LaunchError("the clone with the address %s is lost; the program is ended" % lost[0])
                if signals.drain() and signals.received:
                    if deadline is not None:
                        break  # the second one
                    mpiexec.send_signal(signals.received)
                    deadline = _STOP_SECONDS
                elif not ready:
                    break  # it had its time
        finally:
            os.close(ended)
    if signals.received:
        return 128 + signals.received
    return mpiexec.returncode if mpiexec.returncode >= 0 else 128 - mpiexec.returncode


"""Ending processes with all that they have started."""

import ctypes
import os
import signal

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_LIBC = ctypes.CDLL(None)


def adopt_orphans():
    """From here on what a child leaves behind is this process's child, so that kill_children finds it."""
    _LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def end_with_parent():
    """In a new process: SIGTERM when the one that has made it ends, killed or not."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def kill_children():
    """SIGKILL for all that descend from this process."""
    _kill_all([], {os.getpid()})


def kill_tree(root):
    """SIGKILL for a process and all that descend from it."""
    _kill_all([root], {root})


def _kill_all(fresh, parents):
    """They are stopped first, so that none makes others meanwhile."""
    found = []
    while True:
        for pid in fresh:
            _signal(pid, signal.SIGSTOP)
        found += fresh
        fresh = [pid for pid, parent in _parents() if parent in parents and pid not in found]
        if not fresh:
            break
        parents.update(fresh)
    for pid in found:
        _signal(pid, signal.SIGKILL)


def _signal(pid, number):
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


def _parents():
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open("/proc/%s/stat" % entry) as file:
                    yield int(entry), int(file.read().rpartition(")")[2].split()[1])
            except OSError:
                pass  # gone meanwhile

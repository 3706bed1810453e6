"""The command line of sfmpirun (manual, section 8)."""

from collections import namedtuple

NAMES = ("sfmpirun", "sfmpirun.sigs", "sfmpirun.nosigs")
RANKS_MAX = 4096

USAGE = (
    "usage: sfmpirun [-i stdin_port] [-o stdout_port] [-e stderr_port] [-l listener_port] [-m manager_port] [-v]"
    " NUMPROCS program [args]"
)
HELP = USAGE + """
Clones this VM and runs an MPI program in the clones, one process on each of NUMPROCS virtual processors; destroys the clones when it ends.
-v: clone NUMPROCS VMs as large as this one, with one process each.
-i, -o, -e, -l, -m: TCP ports to use, different ones; others are chosen.
"""

_PORTS = {"-i": "stdin", "-o": "stdout", "-e": "stderr", "-l": "listener", "-m": "manager"}

Options = namedtuple("Options", "ports vms nprocs program arguments")


class UsageError(Exception):
    pass


def _number(what, text, largest):
    if not (text.isascii() and text.isdigit() and 0 < int(text) <= largest):
        raise UsageError("%s must be a number from 1 to %d, not '%s'" % (what, largest, text))
    return int(text)


def parse(argv):
    """Options of the words after the command's name; None when help is asked for."""
    words = list(argv)
    ports = {}
    vms = False
    while words and words[0].startswith("-"):
        word = words.pop(0)
        if word in ("-h", "--help"):
            return None
        if word == "-v":
            vms = True
        elif word in _PORTS and words:
            ports[_PORTS[word]] = _number("the port of " + word, words.pop(0), 65535)
        else:
            raise UsageError("%s needs a port" % word if word in _PORTS else "there is no option %s" % word)
    if len(set(ports.values())) < len(ports):
        raise UsageError("each port must be another one")
    if len(words) < 2:
        raise UsageError("how many processes, and which program?")
    return Options(ports, vms, _number("NUMPROCS", words[0], RANKS_MAX), words[1], words[2:])

"""The user domain API: calls a program inside a VM makes to clone that VM.

Each call is one connection to the agent's socket, one line out and one line back, bytes behind some (docs/guest-channel.md). Calls from
several threads do not disturb one another. Every failure is a SnowflockError.
"""

import operator
import os
import random
import socket
import sys
from collections import namedtuple

from . import _bytes
from ._errors import SnowflockError

__all__ = [
    "SnowflockError", "CloneResult", "TicketResult", "CloneInfo", "Outcome",
    "request_clone_ticket", "request_vm_ticket", "request_proc_ticket", "list_tickets", "clone_master", "dispose_ticket",
    "ic_exit", "ic_join", "join", "ic_kill", "merge_master", "merge_all", "reset_clone", "read_ticket_info", "shutdown_cluster", "whoami",
    "reseed",
]

_DEFAULT_SOCKET = "/run/snowflock/agent.sock"
_REPLY_MAX = 65536 + 2
_TICKET_MAX = 36
_LIMIT_MAX = 10**15
_COUNT_MAX = 0x7FFFFFFF


class TicketResult(namedtuple("TicketResult", "ticket allowed_clones")):
    """What a request gives. It prints as the manual shows it, a plain tuple, like the two below."""

    __slots__ = ()
    __repr__ = tuple.__repr__


class CloneResult(namedtuple("CloneResult", "nclones vmid")):
    __slots__ = ()
    __repr__ = tuple.__repr__


class CloneInfo(namedtuple("CloneInfo", "vmid processors")):
    __slots__ = ()
    __repr__ = tuple.__repr__


class Outcome(namedtuple("Outcome", "vmid how status reason result")):
    """How a clone ended: `how` is "exited" (by ic_exit), "ended" (by a join that had enough, or its guest powered itself off) or
    "lost" (it crashed, could not be started, its host is gone, ...). `status` is that of ic_exit, None unless exited; `reason` is
    for people; `result` is what it returned, b"" if nothing.
    """

    __slots__ = ()

    def __repr__(self):
        return "Outcome(vmid=%d, how=%r, status=%r, reason=%r, result=<%d bytes>)" % (*self[:4], len(self.result))


def _connect():
    path = os.environ.get("SNOWFLOCK_AGENT_SOCKET") or _DEFAULT_SOCKET
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.connect(path)
    except OSError as error:
        connection.close()
        raise SnowflockError("unavailable", "cannot reach the SnowFlock agent at %s: %s" % (path, error)) from error
    return connection


def _words(line):
    """The words after 'ok'."""
    kind, *rest = line.decode("utf-8", "replace").split(" ")
    if kind == "ok":
        return [word for word in rest if word]
    if kind == "err" and rest:
        raise SnowflockError(rest[0], " ".join(rest[1:]) or "the call failed")
    raise _nonsense()


def _exchange(line, source=None, read=None):
    """Makes a call, with the bytes that `source` gives behind its line. The words of the answer, or what `read` makes of them and of
    the bytes behind them.
    """
    with _connect() as connection:
        try:
            connection.sendall(line.encode("ascii") + b"\n")
            if source is not None:
                _bytes.send(connection, source)
        except (BrokenPipeError, ConnectionResetError):
            pass  # if there is a reply, it says why
        try:
            reader = _bytes.Reader(connection)
            words = _words(reader.line(_REPLY_MAX))
            return words if read is None else read(words, reader)
        except (OSError, EOFError) as error:
            raise SnowflockError("unavailable", "the SnowFlock agent closed the connection") from error


def _call(*words):
    return _exchange(" ".join(str(word) for word in words))


def _nonsense():
    return SnowflockError("internal", "the agent's answer makes no sense")


def _numbers(words):
    try:
        return [int(word) for word in words]
    except ValueError:
        raise _nonsense() from None


def _count(name, value):
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool) or abs(number) > _COUNT_MAX:
        raise SnowflockError("bad-request", "%s must be a whole number, not %.80r" % (name, value))
    return number


def _ticket(ticket):
    if not isinstance(ticket, str) or not 0 < len(ticket) <= _TICKET_MAX or not all("!" <= c <= "~" for c in ticket):
        raise SnowflockError("bad-request", "not a ticket: %.80r" % (ticket,))
    return ticket


def request_clone_ticket(nclones, procs=False, min=-1, block=True):
    """Reserves resources for `nclones` clones, or for that many processors if `procs`. Returns (ticket, allowed_clones).

    With min >= 0 a number between min and nclones will do. With block false returns at once with what there is, maybe (None, 0).
    """
    words = _call("request_clone_ticket", _count("nclones", nclones), int(bool(procs)), _count("min", min), int(bool(block)))
    if len(words) != 2:
        raise _nonsense()
    (allowed,) = _numbers(words[:1])
    return TicketResult(words[1] if allowed > 0 else None, allowed)


def request_vm_ticket(nclones):
    """request_clone_ticket for `nclones` clones as large as this VM."""
    return request_clone_ticket(nclones)


def request_proc_ticket(nclones):
    """request_clone_ticket for `nclones` processors, spread over clones."""
    return request_clone_ticket(nclones, procs=True)


def list_tickets():
    """{"unused": tickets not yet cloned, "outstanding": tickets cloned but not yet joined or merged}."""
    result = {"unused": [], "outstanding": []}
    kind = None
    for word in _call("list_tickets"):
        if word in result:
            kind = word
        elif kind is None:
            raise _nonsense()
        else:
            result[kind].append(word)
    return result


def clone_master(ticket, seed="fresh"):
    """Forks this VM, a master VM or a clone. Returns (nclones, vmid) in it and in every clone.

    In the VM that called it vmid is what it was before (whoami), 0 in a master VM; in its clones it is another one.

    In a clone, generators of this process are then seeded anew (see reseed). With seed="same" they go on alike in all VMs, as common
    random numbers do; the kernel's generator (os.urandom, secrets) never does.
    """
    if seed not in ("fresh", "same"):
        raise SnowflockError("bad-request", "seed is 'fresh' or 'same', not %r" % (seed,))
    words = _numbers(_call("clone_master", _ticket(ticket), *(["same"] if seed == "same" else [])))
    if len(words) != 2:
        raise _nonsense()
    result = CloneResult(*words)
    if result.vmid != 0 and seed == "fresh":
        reseed()
    return result


def reseed():
    """Seeds from the kernel's generator what else would draw the same numbers in every clone: `random`, OpenSSL's generator if `ssl` is
    imported, NumPy's legacy generator if `numpy.random` is. Generator objects of a program's own are its own affair.
    """
    random.seed()
    ssl = sys.modules.get("ssl")
    if ssl is not None:
        ssl.RAND_add(os.urandom(48), 48.0)
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed()


def dispose_ticket(ticket):
    """Gives an unused ticket back."""
    _call("dispose_ticket", _ticket(ticket))


def ic_exit(status=0, result=None, result_file=None):
    """Destroys the calling clone; does not return. Whoever joins it gets `status`, a whole number, and the result: bytes, or the
    contents of the file named result_file.

    When this fails the clone runs on, and may exit in another way ("result-too-large": with less).
    """
    if not isinstance(status, int) or not -0x80000000 <= status <= 0x7FFFFFFF:
        raise SnowflockError("bad-request", "status must be a whole number of 32 bits, not %.80r" % (status,))
    if result is not None and result_file is not None:
        raise SnowflockError("bad-request", "give result or result_file, not both")
    try:
        with _bytes.Source(result, result_file) as source:
            announced = ["+%d" % source.size] if source.size > 0 else []
            words = ["ic_exit", *(["%d" % status] if status or announced else []), *announced]
            _exchange(" ".join(words), source=source)
    except (TypeError, ValueError, _bytes.SourceError) as error:
        raise SnowflockError("bad-request", "the result cannot be sent: %s" % error) from error


def ic_join(ticket):
    """Waits until all clones of the ticket have called ic_exit."""
    _call("ic_join", _ticket(ticket))


def join(ticket, count=None, deadline=None, budget_seconds=None, budget_bytes=None):
    """Waits until all clones of the ticket have ended, and returns {vmid: Outcome}, by ascending vmid. The ticket is merged then.

    Waits no longer than until `count` of them have exited, `deadline` seconds have passed since the call, they have run for
    budget_seconds together since the fork, or have returned results of budget_bytes together; those that still run then are ended.

    When this fails nothing is lost, and it may be tried again, unless the ticket was joined or merged before ("ticket-used").
    """
    limits = [
        _limit("count", count, 1),
        _limit("deadline", deadline, 1000),
        _limit("budget_seconds", budget_seconds, 1000),
        _limit("budget_bytes", budget_bytes, 1),
    ]
    outcomes = _exchange(" ".join(["wait_clones", _ticket(ticket), *limits]), read=_outcomes)
    merge_master(ticket)  # only now, so that nothing is lost if this program is
    return outcomes


def _limit(name, value, scale):
    if value is None:
        return "-"
    wrong = isinstance(value, bool) or not isinstance(value, int if scale == 1 else (int, float))
    if wrong or not 0 <= value * scale <= _LIMIT_MAX or (value == 0 and scale == 1):
        kind = "a whole number of 1 or more" if scale == 1 else "a number of seconds, 0 or more"
        raise SnowflockError("bad-request", "%s must be %s, not %.80r" % (name, kind, value))
    return str(int(value * scale + 0.999999))


def _outcomes(words, reader):
    if len(words) != 2:
        raise _nonsense()
    outcomes = {}
    count, reader.left = _numbers([words[0], words[1].lstrip("+")])
    try:
        for _ in range(count):
            vmid, how, status, size, reason = reader.line(_REPLY_MAX).decode("utf-8", "replace").split(" ", 4)
            if how not in ("exited", "ended", "lost"):
                raise ValueError
            result = reader.bytes(int(size))
            outcomes[int(vmid)] = Outcome(int(vmid), how, int(status) if how == "exited" else None, reason, result)
    except ValueError:
        raise _nonsense() from None
    return outcomes


def ic_kill(ticket):
    """The same as merge_master."""
    _call("ic_kill", "*" if ticket is None or ticket == "" else _ticket(ticket))


def merge_master(ticket):
    """Destroys all clones of the ticket, of all tickets if it is None."""
    _call("merge_master", "*" if ticket is None or ticket == "" else _ticket(ticket))


def merge_all():
    """merge_master(None)."""
    merge_master(None)


def reset_clone(vmid):
    """Puts a clone back to the instant of its fork: clone_master returns in it once more, with the same vmid, and what it has done
    since is gone from its memory and its disk. A VM may reset the clones that it has forked and, when it is a clone, itself: then this
    does not return.
    """
    _call("reset_clone", _count("vmid", vmid))


def read_ticket_info(ticket):
    """[(vmid, processors), ...] of the ticket's clones."""
    words = _call("read_ticket_info", _ticket(ticket))
    if not words:
        raise _nonsense()
    infos = [_numbers(word.split(":")) for word in words[1:]]
    if any(len(info) != 2 for info in infos):
        raise _nonsense()
    return [CloneInfo(*info) for info in infos]


def shutdown_cluster():
    """Shuts the master VM down, if no ticket is outstanding."""
    _call("shutdown_cluster")


def whoami():
    """(clusterid, vmid) of this VM."""
    words = _numbers(_call("whoami"))
    if len(words) != 2:
        raise _nonsense()
    return tuple(words)

"""The user domain API: calls a program inside a VM makes to clone that VM.

Each call is one connection to the agent's socket, one line out and one line back (docs/guest-channel.md). Calls from several threads do
not disturb one another. Every failure is a SnowflockError.
"""

import os
import socket
from collections import namedtuple

__all__ = [
    "SnowflockError", "CloneResult", "TicketResult", "CloneInfo",
    "request_clone_ticket", "request_vm_ticket", "request_proc_ticket", "list_tickets", "clone_master", "dispose_ticket",
    "ic_exit", "ic_join", "ic_kill", "merge_master", "merge_all", "read_ticket_info", "shutdown_cluster", "whoami",
]

_DEFAULT_SOCKET = "/run/snowflock/agent.sock"
_REPLY_MAX = 65536 + 2
_TICKET_MAX = 36


class SnowflockError(Exception):
    """A call failed. `code` is a fixed word such as 'no-such-ticket'; the message is for people."""

    def __init__(self, code, message):
        super().__init__("%s: %s" % (code, message))
        self.code = code
        self.message = message


TicketResult = namedtuple("TicketResult", "ticket allowed_clones")
CloneResult = namedtuple("CloneResult", "nclones vmid")
CloneInfo = namedtuple("CloneInfo", "vmid processors")


def _exchange(line):
    path = os.environ.get("SNOWFLOCK_AGENT_SOCKET") or _DEFAULT_SOCKET
    reply = b""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as s:
        try:
            s.connect(path)
        except OSError as error:
            raise SnowflockError("unavailable", "cannot reach the SnowFlock agent at %s: %s" % (path, error)) from error
        try:
            s.sendall(line.encode("ascii") + b"\n")
            while not reply.endswith(b"\n") and len(reply) < _REPLY_MAX:
                chunk = s.recv(65536)
                if not chunk:
                    break
                reply += chunk
        except OSError as error:
            raise SnowflockError("unavailable", "the SnowFlock agent closed the connection") from error
    if not reply.endswith(b"\n"):
        raise SnowflockError("unavailable", "the SnowFlock agent closed the connection")
    return reply[:-1].decode("utf-8", "replace")


def _call(*words):
    """The words after 'ok'."""
    kind, *rest = _exchange(" ".join(str(word) for word in words)).split(" ")
    if kind == "ok":
        return [word for word in rest if word]
    if kind == "err" and rest:
        raise SnowflockError(rest[0], " ".join(rest[1:]) or "the call failed")
    raise _nonsense()


def _nonsense():
    return SnowflockError("internal", "the agent's answer makes no sense")


def _numbers(words):
    try:
        return [int(word) for word in words]
    except ValueError:
        raise _nonsense() from None


def _ticket(ticket):
    if not isinstance(ticket, str) or not 0 < len(ticket) <= _TICKET_MAX or not all("!" <= c <= "~" for c in ticket):
        raise SnowflockError("bad-request", "not a ticket: %r" % (ticket,))
    return ticket


def request_clone_ticket(nclones, procs=False, min=-1, block=True):
    """Reserves resources for `nclones` clones, or for that many processors if `procs`. Returns (ticket, allowed_clones).

    With min >= 0 a number between min and nclones will do. With block false returns at once with what there is, maybe (None, 0).
    """
    words = _call("request_clone_ticket", int(nclones), int(bool(procs)), int(min), int(bool(block)))
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


def clone_master(ticket):
    """Forks this VM. Returns (nclones, vmid) in the master VM (vmid 0) and in every clone."""
    words = _numbers(_call("clone_master", _ticket(ticket)))
    if len(words) != 2:
        raise _nonsense()
    return CloneResult(*words)


def dispose_ticket(ticket):
    """Gives an unused ticket back."""
    _call("dispose_ticket", _ticket(ticket))


def ic_exit():
    """Destroys the calling clone; does not return."""
    _call("ic_exit")


def ic_join(ticket):
    """Waits until all clones of the ticket have called ic_exit."""
    _call("ic_join", _ticket(ticket))


def ic_kill(ticket):
    """The same as merge_master."""
    _call("ic_kill", "*" if ticket is None or ticket == "" else _ticket(ticket))


def merge_master(ticket):
    """Destroys all clones of the ticket, of all tickets if it is None."""
    _call("merge_master", "*" if ticket is None or ticket == "" else _ticket(ticket))


def merge_all():
    """merge_master(None)."""
    merge_master(None)


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

"""What the master VM and the launchers in its clones say to each other.

A launcher listens on four ports. Who connects sends one line, `SECRET KIND NAME`, and is answered `ok` or `err TEXT`:

    manager  hold -    the lifeline: the clone ends when this connection does
             start ID  then a line of JSON {command, env, cwd}; at the end of the command comes `exit STATUS`
    stdin    start ID  raw bytes, as for the other two; they are the command's own descriptors
    stdout   start ID
    stderr   start ID

The secret is made before the fork, so the clones know it without being told. What does not show it is hung up on.
"""

import json
import os
import socket

STREAMS = ("stdin", "stdout", "stderr")
PORTS = ("manager", *STREAMS)
LINE_MAX = 4096
START_MAX = 4 * 1024 * 1024
CONNECT_SECONDS = 20
ANSWER_SECONDS = 30
_ALL = "0.0.0.0"


class JobError(Exception):
    """What went wrong, for people."""


class Session:
    """Secret and ports of one run; `listeners` while this process has them."""

    def __init__(self, secret, ports, listeners=None):
        self.secret = secret
        self.ports = ports
        self.listeners = listeners or {}

    @classmethod
    def listen(cls, wanted, address=_ALL):
        """A new session whose ports are bound before the fork: nobody can take them in a clone. `wanted`: {name: port}, 0 for any."""
        listeners = {}
        try:
            for name in PORTS:
                listener = socket.socket()
                listeners[name] = listener
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    listener.bind((address, wanted.get(name, 0)))
                    listener.listen(64)
                except OSError as error:
                    raise JobError("port %d is not available: %s" % (wanted.get(name, 0), error.strerror)) from error
        except JobError:
            for listener in listeners.values():
                listener.close()
            raise
        ports = {name: listener.getsockname()[1] for name, listener in listeners.items()}
        return cls(os.urandom(32).hex(), ports, listeners)

    def close(self):
        for listener in self.listeners.values():
            listener.close()
        self.listeners = {}

    def save(self, path):
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            json.dump({"secret": self.secret, "ports": self.ports}, file)

    @classmethod
    def load(cls, path):
        with open(path) as file:
            saved = json.load(file)
        return cls(saved["secret"], saved["ports"])

    def connect(self, address, port, kind, name):
        """A connection on which the launcher at `address` has been shown the secret."""
        try:
            connection = socket.create_connection((address, self.ports[port]), CONNECT_SECONDS)
        except OSError as error:
            raise JobError("cannot reach the launcher in %s: %s" % (address, error)) from error
        try:
            keep_alive(connection, lifeline=kind == "hold")
            connection.settimeout(ANSWER_SECONDS)
            connection.sendall(("%s %s %s\n" % (self.secret, kind, name)).encode())
            expect_ok(connection, address)
        except OSError as error:
            connection.close()
            raise JobError("the launcher in %s does not answer: %s" % (address, error)) from error
        except JobError:
            connection.close()
            raise
        return connection


def keep_alive(connection, lifeline=False):
    """So that a VM that is gone, which says nothing, is noticed: in some 15 s by its lifeline, which then says so, in a minute by others."""
    idle, interval, count = (5, 3, 4) if lifeline else (30, 10, 3)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, idle)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, interval)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, count)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000 * (idle + interval * count))


def read_line(connection, limit=LINE_MAX):
    """The next line without its end, "" if the connection ended first. Reads not a byte more: what follows belongs to somebody else."""
    line = bytearray()
    while len(line) < limit:
        seen = connection.recv(min(limit - len(line), 65536), socket.MSG_PEEK)
        if not seen:
            return ""
        end = seen.find(b"\n") + 1
        line += connection.recv(end or len(seen))
        if end:
            return line[:-1].decode("utf-8", "surrogateescape")
    raise OSError("a line is longer than %d bytes" % limit)


def expect_ok(connection, address):
    answer = read_line(connection)
    if answer == "ok":
        return
    if answer.startswith("err "):
        raise JobError("the launcher in %s says: %s" % (address, answer[4:]))
    raise JobError("the launcher in %s closed the connection" % address)

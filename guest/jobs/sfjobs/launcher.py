"""The remote launcher: what the copy of a job in each clone becomes.

It owns the processes that it starts: they end when the connection that asked for them does, and all of them when the lifeline does. The
connections for a command's streams become its descriptors 0, 1 and 2.
"""

import json
import os
import selectors
import signal
import subprocess
import threading
import time
from hmac import compare_digest

from .processes import kill_tree
from .wire import START_MAX, STREAMS, keep_alive, read_line

HELLO_SECONDS = 10
STREAMS_SECONDS = 20
LIFELINE_SECONDS = 60
LEAVE_AGAIN_SECONDS = 5
CONNECTIONS_MAX = 256


class Launcher:
    def __init__(self, session):
        self._session = session
        self._changed = threading.Condition()
        self._streams = {}  # (id of a start, name): connection
        self._commands = set()
        self._connections = 0
        self._held = False
        self._ended = threading.Event()

    def serve(self):
        """Returns when the lifeline has ended, or never came. No process that was started is left then."""
        threading.Thread(target=self._accept, daemon=True).start()
        self._ended.wait(LIFELINE_SECONDS)
        if self._held:
            self._ended.wait()
        self._session.close()
        with self._changed:
            commands = list(self._commands)
        for command in commands:
            kill_tree(command.pid)

    def _accept(self):
        selector = selectors.DefaultSelector()
        for name, listener in self._session.listeners.items():
            selector.register(listener, selectors.EVENT_READ, name)
        while not self._ended.is_set():
            for key, _ in selector.select():
                try:
                    connection = key.fileobj.accept()[0]
                except OSError:
                    continue  # it went away, or serve has closed the session
                if self._connections >= CONNECTIONS_MAX:
                    connection.close()
                    continue
                with self._changed:
                    self._connections += 1
                threading.Thread(target=self._greet, args=(key.data, connection), daemon=True).start()

    def _greet(self, port, connection):
        try:
            connection.settimeout(HELLO_SECONDS)
            keep_alive(connection)
            secret, kind, name = read_line(connection).split(" ")
            if not compare_digest(secret.encode("utf-8", "surrogateescape"), self._session.secret.encode()):
                return
            if port in STREAMS and kind == "start":
                self._offer(name, port, connection)
                connection = None  # it belongs to the command now
            elif kind == "hold" and not self._held:
                self._hold(connection)
            elif kind == "start":
                self._start(name, connection)
        except (OSError, ValueError):
            pass  # hung up, or speaks something else
        finally:
            if connection is not None:
                connection.close()
            with self._changed:
                self._connections -= 1

    def _hold(self, connection):
        self._held = True
        try:
            keep_alive(connection, lifeline=True)
            connection.sendall(b"ok\n")
            connection.settimeout(None)
            while connection.recv(1024):
                pass
        finally:
            self._ended.set()

    def _offer(self, name, port, connection):
        connection.sendall(b"ok\n")
        connection.settimeout(None)
        with self._changed:
            self._streams[name, port] = connection
            self._changed.notify_all()

    def _take(self, name):
        """The three streams of a start, or an error when they do not come."""
        wanted = [(name, stream) for stream in STREAMS]
        with self._changed:
            self._changed.wait_for(lambda: all(key in self._streams for key in wanted), STREAMS_SECONDS)
            found = [self._streams.pop(key, None) for key in wanted]
        if None not in found:
            return found
        for stream in found:
            if stream is not None:
                stream.close()
        raise OSError("the streams of a command did not come")

    def _start(self, name, connection):
        connection.sendall(b"ok\n")
        request = json.loads(read_line(connection, START_MAX))
        streams = self._take(name)
        try:
            command = subprocess.Popen(
                ["/bin/sh", "-c", request["command"]],
                stdin=streams[0], stdout=streams[1], stderr=streams[2],
                cwd=request["cwd"], env=request["env"], start_new_session=True,
            )
        except (OSError, KeyError, TypeError, ValueError) as error:
            connection.sendall(("err cannot start: %s\n" % error).encode("utf-8", "replace"))
            return
        finally:
            for stream in streams:
                stream.close()
        with self._changed:
            self._commands.add(command)
        connection.sendall(b"ok\n")
        threading.Thread(target=end_with, args=(connection, command), daemon=True).start()
        status = command.wait()
        with self._changed:
            self._commands.discard(command)
        connection.sendall(b"exit %d\n" % (status if status >= 0 else 128 - status))


def end_with(connection, command):
    """Ends the command when the connection ends."""
    try:
        connection.settimeout(None)
        while connection.recv(1024):
            pass
    except OSError:
        pass
    if command.poll() is None:
        kill_tree(command.pid)


def be_launcher(session, leave):
    """In a clone: serves, then leaves. Never returns, for the program that called the job must not go on in a clone."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: None)  # not SIG_IGN: commands would inherit that
    try:
        os.setsid()
    except OSError:
        pass  # leads a session already
    null = os.open("/dev/null", os.O_RDWR)
    for descriptor in range(3):
        os.dup2(null, descriptor)
    try:
        Launcher(session).serve()
    except Exception:  # noqa: BLE001, S110
        pass  # whatever it was, this clone is of no use any more
    while True:
        try:
            leave()
        except Exception:  # noqa: BLE001, S110
            pass  # the host may be back later; the master VM, whose lifeline has ended, merges this clone in any case
        time.sleep(LEAVE_AGAIN_SECONDS)

"""sf-launch HOST COMMAND...: what mpiexec calls where it would call rsh. Runs the command in a clone, as /bin/sh there reads it.

It finds the session beside its own name: each run has a directory with a link to this program in it.
"""

import json
import os
import sys
import threading

from .wire import STREAMS, JobError, Session, expect_ok, read_line

_DRAIN_SECONDS = 10
_CHUNK = 65536


def launch(session, address, command):
    """Carries the streams; the command's exit status."""
    name = os.urandom(16).hex()
    manager = session.connect(address, "manager", "start", name)
    request = {"command": command, "env": dict(os.environ), "cwd": os.getcwd()}
    manager.sendall(json.dumps(request).encode() + b"\n")
    stdin, stdout, stderr = [session.connect(address, stream, "start", name) for stream in STREAMS]
    expect_ok(manager, address)
    for stream in (manager, stdin, stdout, stderr):
        stream.settimeout(None)
    threading.Thread(target=_send, args=(stdin,), daemon=True).start()
    outputs = [threading.Thread(target=_receive, args=pair, daemon=True) for pair in ((stdout, 1), (stderr, 2))]
    for thread in outputs:
        thread.start()
    kind, _, status = read_line(manager).partition(" ")
    if kind != "exit":
        raise JobError("the connection to %s is lost" % address)
    for thread in outputs:
        thread.join(_DRAIN_SECONDS)  # a process that it left behind may hold them open
    return int(status)


def _send(stream):
    try:
        while chunk := os.read(0, _CHUNK):
            stream.sendall(chunk)
        stream.shutdown(1)
    except OSError:
        pass  # nobody reads it any more, or there is no standard input


def _receive(stream, descriptor):
    try:
        while chunk := stream.recv(_CHUNK):
            while chunk:
                chunk = chunk[os.write(descriptor, chunk):]
    except OSError:
        pass  # the status says how it ended


def main(argv):
    if len(argv) < 3:
        sys.exit("usage: sf-launch HOST COMMAND...")
    try:
        session = Session.load(os.path.join(os.path.dirname(argv[0]), "session"))
        status = launch(session, argv[1], " ".join(argv[2:]))
    except (JobError, OSError) as error:
        sys.stderr.write("sf-launch: %s\n" % error)
        status = 255
    sys.stdout.flush()
    os._exit(status)  # the thread that reads standard input waits for more

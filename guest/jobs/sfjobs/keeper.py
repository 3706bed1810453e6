"""Owns what a job must give back: its directory and its ticket.

A job that gave them back itself would leave both when it is killed. So it has a process for that, made before there is anything to give
back, which asks for the ticket itself and learns of the job's end, however it came, by the end of a pipe:

    (when it is ready)       it says `ok DIRECTORY`
    request N PROCS LEAST    answered `ok TICKET ALLOWED`, TICKET is '-' when there are too few resources, or `err TEXT`
    done                     the job has ended by itself
    end of the pipe          the ticket is disposed or merged, the directory removed, and the keeper ends. Without `done` the job was
                             killed: launchers may first end what they have started, for which programs in this VM wait

It is forked along into clones, where it gives nothing back: the ticket is not theirs.
"""

import ctypes
import os
import select
import shutil
import signal
import sys
import tempfile
import time

import snowflock

from .wire import JobError

_PR_SET_NAME = 15
_NAME = b"sf-keeper"
_GIVE_BACK_SECONDS = 120
_AGAIN_SECONDS = 2
_LEAVE_SECONDS = 10
_PASSING = ("unavailable", "interrupted")
# Also when a call was interrupted that had done it.
_GIVEN_BACK = ("no-such-ticket", "ticket-used", "ticket-disposed")
_ANSWER_MAX = 4096


class Keeper:
    def __init__(self, program):
        """`program` is who speaks when something cannot be given back."""
        me = snowflock.whoami()[1]
        questions, self._to = os.pipe()
        self._from, answers = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                # The grandchild is nobody's: neither the job's end nor kill_children takes it along.
                if os.fork() == 0:
                    os.close(self._to)
                    os.close(self._from)
                    _keep(program, me, questions, answers)
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        os.close(questions)
        os.close(answers)
        self.directory = self._answer()

    def request(self, count, procs, least):
        """(ticket, how many of them it is for); (None, 0) when there are not `least`."""
        try:
            os.write(self._to, b"request %d %d %d\n" % (count, procs, least))
        except BrokenPipeError:
            pass  # there is no answer then
        ticket, allowed = self._answer().split(" ")
        return (None, 0) if ticket == "-" else (ticket, int(allowed))

    def _answer(self):
        kind, _, rest = os.read(self._from, _ANSWER_MAX).decode("utf-8", "replace").rstrip("\n").partition(" ")
        if kind != "ok":
            raise JobError(rest or "the keeper of this job has ended")
        return rest

    def give_back(self, or_readable):
        """All is given back when this returns true. False: the descriptor became readable first; the keeper goes on without us."""
        try:
            os.write(self._to, b"done\n")
        except BrokenPipeError:
            pass  # it was killed itself
        os.close(self._to)
        try:
            return self._from in select.select([self._from, or_readable], [], [], 2 * _GIVE_BACK_SECONDS)[0]
        finally:
            os.close(self._from)


def _keep(program, me, questions, answers):
    ctypes.CDLL(None).prctl(_PR_SET_NAME, _NAME, 0, 0, 0)
    os.setsid()  # a terminal's Ctrl-C is not for it
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    null = os.open("/dev/null", os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    ticket, killed = None, True
    try:
        directory = tempfile.mkdtemp(prefix="sfjob-")  # of mode 0700
    except OSError as error:
        _say(answers, "err no directory for this job: %s" % error)
        return
    _say(answers, "ok " + directory)
    with open(questions, "rb", buffering=0) as lines:
        while line := lines.readline():
            if line == b"done\n":
                killed = False
                continue
            answer, ticket = _request(*[int(word) for word in line.split()[1:]])
            _say(answers, answer)
    if _still(me):
        if ticket is not None:
            _give_back(program, ticket, killed)
        shutil.rmtree(directory, ignore_errors=True)


def _say(answers, text):
    try:
        os.write(answers, text.encode("utf-8", "replace")[:_ANSWER_MAX])
    except BrokenPipeError:
        pass  # the job has ended; so will its questions


def _request(count, procs, least):
    try:
        ticket, allowed = snowflock.request_clone_ticket(count, procs=bool(procs), min=least, block=False)
    except snowflock.SnowflockError as error:
        return "err %s" % error, None
    return "ok %s %d" % (ticket or "-", allowed), ticket


def _still(me):
    """Whether this is the VM that the job was started in, and not a clone of it."""
    try:
        return snowflock.whoami()[1] == me
    except snowflock.SnowflockError:
        return False


def _give_back(program, ticket, killed):
    deadline = time.monotonic() + _GIVE_BACK_SECONDS
    while True:
        try:
            if ticket in snowflock.list_tickets()["unused"]:
                snowflock.dispose_ticket(ticket)
            elif killed:
                snowflock.join(ticket, deadline=_LEAVE_SECONDS)
            else:
                snowflock.merge_master(ticket)
            return
        except snowflock.SnowflockError as error:
            if error.code in _GIVEN_BACK:
                return
            if error.code not in _PASSING or time.monotonic() > deadline:
                sys.stderr.write("%s: the clones of ticket %s may be left (sfmerge %s): %s\n" % (program, ticket, ticket, error))
                return
        time.sleep(_AGAIN_SECONDS)

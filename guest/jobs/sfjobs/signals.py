"""Signals that end a job."""

import contextlib
import os
import signal

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(BaseException):
    """A signal came while nothing but a call was waited for."""

    def __init__(self, number):
        super().__init__(number)
        self.number = number


class Signals:
    """They are taken note of from here on, and looked at where something can be done about them."""

    def __init__(self):
        self.received = None
        self._raising = False
        self.reader, writer = os.pipe()
        os.set_blocking(self.reader, False)
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer)
        for number in NUMBERS:
            signal.signal(number, self._note)

    def _note(self, number, _frame):
        self.received = number
        if self._raising:
            raise Interrupted(number)

    @contextlib.contextmanager
    def raising(self):
        """Within it, a signal raises Interrupted, also one that has come before."""
        self._raising = True
        try:
            if self.received:
                raise Interrupted(self.received)
            yield
        finally:
            self._raising = False

    def drain(self):
        """Whether `reader` had anything to read."""
        try:
            return bool(os.read(self.reader, 64))
        except BlockingIOError:
            return False

"""Bytes that follow a line on the agent socket, in both directions (docs/guest-channel.md)."""

import io
import os
import select
import stat

_CHUNK = 65536


class SourceError(Exception):
    """The result cannot be read, or is no longer what was announced."""


class Source:
    """A result to be sent: bytes, or a file by its name, or nothing."""

    def __init__(self, data, path):
        if path is None:
            view = memoryview(b"" if data is None else data).cast("B")
            self.size = len(view)
            self._file = io.BytesIO(view)
            return
        try:
            self._file = open(path, "rb")
            info = os.fstat(self._file.fileno())
            if stat.S_ISREG(info.st_mode) and info.st_size > 0:
                self.size = info.st_size
            else:  # what has no size: a pipe, a device, a file of /proc
                with self._file as file:
                    self._file = io.BytesIO(file.read())
                self.size = len(self._file.getbuffer())
        except OSError as error:
            raise SourceError(error) from error

    def chunk(self, left):
        try:
            data = self._file.read(min(left, _CHUNK))
        except OSError as error:
            raise SourceError(error) from error
        if not data:
            raise SourceError("the file became shorter while it was sent")
        return data

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._file.close()


def send(connection, source):
    """All of it, unless the reply comes before: then nobody wants the rest."""
    replied = select.poll()
    replied.register(connection, select.POLLIN)
    left = source.size
    while left > 0 and not replied.poll(0):
        data = source.chunk(left)
        connection.sendall(data)
        left -= len(data)


class Reader:
    """Lines and bytes of a connection; EOFError when it ends before. `left`: so many bytes of the reply are still to come, ValueError
    where there should be more.
    """

    def __init__(self, connection):
        self._connection = connection
        self._pending = bytearray()
        self.left = None

    def line(self, limit):
        """Without its newline."""
        while True:
            end = self._pending.find(b"\n")
            if end >= 0:
                self._take(end + 1)
                line = bytes(self._pending[:end])
                del self._pending[: end + 1]
                return line
            if self.left is not None and len(self._pending) >= self.left:
                raise ValueError
            if len(self._pending) > limit:
                raise EOFError
            self._fill()

    def bytes(self, size):
        self._take(size)
        data = bytearray(size)
        have = min(size, len(self._pending))
        data[:have] = self._pending[:have]
        del self._pending[:have]
        view = memoryview(data)
        while have < size:
            count = self._connection.recv_into(view[have:])
            if count == 0:
                raise EOFError
            have += count
        view.release()
        return bytes(data)

    def _take(self, size):
        if self.left is None:
            return
        if not 0 <= size <= self.left:
            raise ValueError
        self.left -= size

    def _fill(self):
        data = self._connection.recv(_CHUNK)
        if not data:
            raise EOFError
        self._pending += data

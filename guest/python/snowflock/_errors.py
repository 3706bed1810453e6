"""What both APIs raise."""


class SnowflockError(Exception):
    """A call failed. `code` is a fixed word such as 'no-such-ticket'; the message is for people."""

    def __init__(self, code, message):
        super().__init__("%s: %s" % (code, message))
        self.code = code
        self.message = message

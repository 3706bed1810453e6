"""SnowFlock for programs inside a VM: `import snowflock` gives the calls of SnowFlock 0.2c (manual, section 5)."""

from .domUapi import *  # noqa: F401,F403
from .domUapi import __all__  # noqa: F401

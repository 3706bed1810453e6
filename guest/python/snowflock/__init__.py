"""SnowFlock 0.2c's Python API (manual, section 5): `import snowflock` gives the calls of where it runs.

In a VM these are the user domain API (domUapi), on a host the domain 0 API (dom0api). Both are there by their names, too.
"""

import os as _os


def _in_vm():
    agent = _os.environ.get("SNOWFLOCK_AGENT_SOCKET") or "/run/snowflock/agent.sock"
    host_side = _os.path.join(_os.path.dirname(__file__), "dom0api.py")
    return bool(_os.environ.get("SNOWFLOCK_AGENT_SOCKET")) or _os.path.exists(agent) or not _os.path.exists(host_side)


if _in_vm():
    from .domUapi import *  # noqa: F401,F403
    from .domUapi import __all__  # noqa: F401
else:
    from .dom0api import *  # noqa: F401,F403
    from .dom0api import __all__  # noqa: F401

"""The domain 0 API: calls a program on a host makes to see the system and to start clusters.

They go to the sfld of this host, through its unix socket: SNOWFLOCK_SOCKET, or /run/snowflock/sfld.sock. Every failure is a
SnowflockError, with the same codes as everywhere. Each call is a connection of its own; threads do not disturb one another.

The manual's text has lost the names of two of the three calls; here they are named after the third, dump_host_state, and after the
command that does the same, sfseed.
"""

import http.client
import json
import os
import socket
from collections import namedtuple

from ._errors import SnowflockError
from ._seedconfig import read_seed_config

__all__ = ["SnowflockError", "SeedResult", "dump_cluster_state", "dump_host_state", "sf_seed", "shutdown"]

_DEFAULT_SOCKET = "/run/snowflock/sfld.sock"
_REPLY_MAX = 16 << 20
_STATE_SECONDS = 10
_SEED_SECONDS = 120
_SHUTDOWN_SECONDS = 60

SeedResult = namedtuple("SeedResult", "domain_id ip")


class _Connection(http.client.HTTPConnection):
    def __init__(self, path, seconds):
        super().__init__("localhost", timeout=seconds)
        self._path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def _ask(method, path, seconds, body=None):
    """The parsed reply of sfmd, asked through the sfld of this host; None when it has no body."""
    where = os.environ.get("SNOWFLOCK_SOCKET") or _DEFAULT_SOCKET
    connection = _Connection(where, seconds)
    headers = {"accept": "application/json"}
    data = None
    if body is not None:
        data = json.dumps(body).encode()
        headers["content-type"] = "application/json"
    try:
        connection.request(method, "/v1/master" + path, body=data, headers=headers)
        response = connection.getresponse()
        text = response.read(_REPLY_MAX + 1)
    except TimeoutError as error:
        raise SnowflockError("timeout", "%s %s: no answer in %d s; see sfld's log for what it waits for" % (method, path, seconds)) from error
    except (OSError, http.client.HTTPException) as error:
        hint = "start it with 'sfld start', or name its socket in SNOWFLOCK_SOCKET"
        raise SnowflockError("unavailable", "cannot ask the sfld at %s: %s; %s" % (where, error, hint)) from error
    finally:
        connection.close()
    return _parse(response.status, text, "%s %s" % (method, path))


def _parse(status, text, what):
    try:
        if len(text) > _REPLY_MAX:
            raise ValueError("it is longer than %d bytes" % _REPLY_MAX)
        reply = json.loads(text) if text else None
        if status < 400:
            return reply
        error = reply["error"]
        raise SnowflockError(str(error["code"]), str(error["message"]))
    except (ValueError, KeyError, TypeError) as error:
        raise SnowflockError("unavailable", "%s: status %d with an answer that makes no sense: %s" % (what, status, error)) from error


def dump_cluster_state():
    """The running clusters: {clusterid: {"disk_image", "vcpus", "memory", "vms", "tickets"}}; memory in MiB, as in a seed's configuration.

    "vms" is {vmid: {"status", "host", "vcpus", "memory", "ip", "ticket", "reason"}}: vmid 0 is the master VM; ticket is that which a
    clone was made with, reason why it is gone. "tickets" is {ticket: {"status", "clones"}}: "unused" or "outstanding", and
    {vmid: {"processors", "host"}}.
    """
    return {cluster["clusterid"]: _cluster(cluster) for cluster in _ask("GET", "/state", _STATE_SECONDS)["clusters"]}


def _cluster(cluster):
    shape = cluster["shape"]
    vms = {vm["vmid"]: {"status": vm["status"], "host": vm["host"], "vcpus": vm["vcpus"], "memory": vm["memoryMib"], "ip": vm["ip"],
                        "ticket": vm["ticket"], "reason": vm["reason"]} for vm in cluster["vms"]}
    tickets = {ticket["ticket"]: {"status": ticket["status"],
                                  "clones": {clone["vmid"]: {"processors": clone["processors"], "host": clone["host"]}
                                             for clone in ticket["clones"]}} for ticket in cluster["tickets"]}
    return {"disk_image": shape["diskImage"], "vcpus": shape["vcpus"], "memory": shape["memoryMib"], "vms": vms, "tickets": tickets}


def dump_host_state():
    """The hosts of the system: {host: {"up", "address", "accel", "cpus", "cpus_free", "ram", "ram_free", "vms"}}; ram in bytes, as in
    sfmd.cfg; "vms" is how many run there. Free is what no running or reserved VM occupies.
    """
    return {host["host"]: {"up": host["up"], "address": host["address"], "accel": host["accel"], "cpus": host["cpus"],
                           "cpus_free": host["cpusFree"], "ram": host["ramBytes"], "ram_free": host["ramFreeBytes"], "vms": host["vms"]}
            for host in _ask("GET", "/state", _STATE_SECONDS)["hosts"]}


def sf_seed(cfgpath):
    """Starts the master VM of a new cluster from a configuration file, as sfseed does. Returns (domain_id, ip); the domain id is the
    clusterid. The VM boots when this returns.
    """
    reply = _ask("POST", "/clusters", _SEED_SECONDS, read_seed_config(cfgpath))
    return SeedResult(reply["clusterid"], reply["ip"])


def shutdown(domain_id, force=False):
    """Shuts a cluster down, with force also its clones that have not been merged."""
    if isinstance(domain_id, bool) or not isinstance(domain_id, int) or domain_id < 0:
        raise SnowflockError("bad-request", "a domain id is a whole number, not %.80r" % (domain_id,))
    _ask("DELETE", "/clusters/%d%s" % (domain_id, "?force=1" if force else ""), _SHUTDOWN_SECONDS)

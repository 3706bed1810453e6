"""The two MPI libraries: which one a program uses, and how its mpiexec is told to start programs in clones."""

import os
import subprocess

from sfjobs.wire import JobError

INTERFACE = "eth0"
_LDD_SECONDS = 30
_UCX_DISCONNECT = "/usr/lib/snowflock/mpi/ucx-disconnect.so"


def library_of(program):
    """'mpich' or 'openmpi', by what the program is linked with. $SFMPI_LIBRARY says it of scripts; else they are MPICH's."""
    said = os.environ.get("SFMPI_LIBRARY")
    if said:
        if said not in COMMANDS:
            raise JobError("SFMPI_LIBRARY is '%s'; it may be mpich or openmpi" % said)
        return said
    try:
        listing = subprocess.run(["ldd", program], capture_output=True, timeout=_LDD_SECONDS, check=False).stdout
    except (OSError, subprocess.TimeoutExpired) as error:
        raise JobError("cannot look what %s is linked with: %s" % (program, error)) from error
    return "openmpi" if b"libmpi.so" in listing or b"libopen-rte" in listing else "mpich"


def _mpich(job, places, listener, program):
    ranks = sum(place.processors for place in places)
    command = [
        "mpiexec.hydra", "-launcher", "rsh", "-launcher-exec", job.launch,
        "-f", hosts_of(job), "-iface", INTERFACE, "-n", str(ranks), *program,
    ]
    environment = {
        # Clones have their parent's boot id: UCX would take them for one machine and try shared memory.
        "UCX_TLS": "tcp,self",
        "UCX_NET_DEVICES": INTERFACE,
        **({"MPIEXEC_PORT_RANGE": "%d:%d" % (listener, listener)} if listener else {}),
    }
    if os.path.exists(_UCX_DISCONNECT):
        environment["LD_PRELOAD"] = " ".join(filter(None, [_UCX_DISCONNECT, os.environ.get("LD_PRELOAD")]))
    return command, environment, "".join("%s:%d\n" % place for place in places)


def _openmpi(job, places, listener, program):
    ranks = sum(place.processors for place in places)
    settings = {
        "plm_rsh_agent": job.launch,
        "plm_rsh_no_tree_spawn": "1",
        "oob_tcp_if_include": INTERFACE,
        "btl_tcp_if_include": INTERFACE,
        "pml": "ob1",
        "btl": "vader,tcp,self",
        **({"oob_tcp_dynamic_ipv4_ports": str(listener)} if listener else {}),
    }
    command = [
        "mpirun.openmpi", "--allow-run-as-root", "--leave-session-attached",
        *[word for key, value in settings.items() for word in ("--mca", key, value)],
        "--hostfile", hosts_of(job), "-np", str(ranks), *program,
    ]
    return command, {}, "".join("%s slots=%d\n" % place for place in places)


def hosts_of(job):
    """Path of the file with the hosts, which is still to be written."""
    return os.path.join(job.directory, "hosts")


COMMANDS = {"mpich": _mpich, "openmpi": _openmpi}
MPIEXEC = {"mpich": "mpiexec.hydra", "openmpi": "mpirun.openmpi"}

"""sfmpirun: all or nothing. Whatever happens, the clones that it made are gone when it ends."""

import os
import shutil
import sys

from sfjobs.job import Job
from sfjobs.job import main as job_main

from .mpi import COMMANDS, MPIEXEC, hosts_of, library_of
from .options import HELP, USAGE, UsageError, parse

_NAME = "sfmpirun"
_NOT_FOUND = 127
_NOT_EXECUTABLE = 126


def _say(text):
    sys.stderr.write("%s: %s\n" % (_NAME, text))


def main(argv):
    return job_main(_run, _NAME, argv)


def _run(argv):
    try:
        options = parse(argv[1:])
    except UsageError as error:
        _say(error)
        sys.stderr.write(USAGE + "\n")
        return 2
    if options is None:
        sys.stdout.write(HELP)
        return 0
    program = shutil.which(options.program)
    if program is None:
        there = os.path.exists(options.program)
        _say("%s %s" % (options.program, "cannot be executed" if there else "is not there; nothing was cloned"))
        return _NOT_EXECUTABLE if there else _NOT_FOUND
    library = library_of(program)
    if shutil.which(MPIEXEC[library]) is None:
        _say("%s, which %s needs, is not installed in this VM" % (MPIEXEC[library], options.program))
        return _NOT_FOUND
    with Job(_NAME, options.ports) as job:
        places = job.fork(options.nprocs, options.vms, options.nprocs)
        if job.status:
            return job.status
        words = [os.path.abspath(program), *options.arguments]
        command, environment, hosts = COMMANDS[library](job, places, options.ports.get("listener"), words)
        with open(hosts_of(job), "w") as file:
            file.write(hosts)
        return job.run(places, command, environment)

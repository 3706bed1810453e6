# Forks with the seed policy of its argument; then each VM writes a line for each generator of this process: its name and what it draws.
# All have drawn before the fork, so that none is seeded for the first time after it.
import os
import random
import secrets
import ssl
import subprocess
import sys
import uuid

import snowflock

GENERATORS = {
    "random": lambda: "%.17f" % random.random(),
    "openssl": lambda: ssl.RAND_bytes(16).hex(),
    "urandom": lambda: os.urandom(16).hex(),
    "secrets": lambda: secrets.token_hex(16),
    "uuid4": lambda: str(uuid.uuid4()),
    "process": lambda: subprocess.run(["openssl", "rand", "-hex", "16"], capture_output=True, check=True).stdout.decode().strip(),
}

for draw in GENERATORS.values():
    draw()
(ticket, allowed) = snowflock.request_vm_ticket(2)
(nclones, vmid) = snowflock.clone_master(ticket, seed=sys.argv[1])
drawn = "".join("%s %s\n" % (name, draw()) for name, draw in GENERATORS.items())
with open("/run/drawn.new", "w") as report:
    report.write("%d\n%s" % (vmid, drawn))
os.rename("/run/drawn.new", "/run/drawn." + sys.argv[1])
if vmid == 0:
    print(ticket, flush=True)
    input()
    snowflock.merge_master(ticket)
    print("merged", flush=True)
else:
    input()

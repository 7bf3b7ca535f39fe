"""A host full of guests: each further one takes only what no other has.

The guests are those of `workers.guest`: page cache of this machine's own files, free memory, heap, a log.

$ python examples/host_of_guests.py
guests  loaded  taken
     1   4 MiB  3 MiB
     2   8 MiB  4 MiB
     3  12 MiB  5 MiB
     4  16 MiB  6 MiB
"""

import contextlib
import subprocess
import sys
from pathlib import Path
from subprocess import PIPE

import ksmemu


def start_guest(number):
    """Start a guest, and let its log stop where it is."""
    command = [sys.executable, "-m", "workers.guest", "--number", str(number), "--dir", str(ksmd.directory)]
    root = Path(__file__).parents[1]
    guest = subprocess.Popen(command, cwd=root, text=True, bufsize=1, stdin=PIPE, stdout=PIPE)
    print("stop", file=guest.stdin)
    assert guest.stdout.readline() == f"ready {guest.pid}\n"
    assert guest.stdout.readline() == "ok\n"
    return guest


with ksmemu.Ksmd(run=1, pages_to_scan=100_000, smart_scan=0) as ksmd, contextlib.ExitStack() as guests:
    print("guests  loaded  taken")
    for number in range(4):
        guest = guests.enter_context(start_guest(number))
        guests.callback(guest.stdin.close)
        ksmd.wait_full_scans(4)
        loaded = ksmd.read("pages_tracked")
        taken = loaded - ksmd.read("pages_sharing")
        print(f"{number + 1:>6} {loaded / 256:>3.0f} MiB {taken / 256:>2.0f} MiB")

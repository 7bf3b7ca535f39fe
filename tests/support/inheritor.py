"""A child that says what it inherits of the prctl: `0|1 PAGES`, its setting and how many pages it merges."""

import os
import sys

import ksmemu
from tests.support import books
from tests.support.procmaps import PAGE
from tests.support.waiting import wait_until

FILL = b"*" * PAGE


def report(nr_pages):
    """Map and fill pages without a word of advice, and let the ksmd that runs merge what it may."""
    with ksmemu.AddressSpace(nr_pages * PAGE) as space, ksmemu.connect() as ksmd:
        start = space.mmap(nr_pages * PAGE)
        space.write(start, FILL * nr_pages)
        books.wait_at_rest(ksmd)
        books.wait_written(ksmd)
        file = ksmd.directory / "proc" / str(os.getpid()) / "ksm_merging_pages"
        wait_until(file.exists if ksmemu.get_memory_merge() else lambda: True, what="figures of this process")
        merging = int(file.read_text()) if file.exists() else 0
    return f"{int(ksmemu.get_memory_merge())} {merging}"


if __name__ == "__main__":
    sys.stdout.write(report(512))

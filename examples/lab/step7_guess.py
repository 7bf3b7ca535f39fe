"""Step 7: can sharing be seen? Somebody guesses what another process's memory holds, and looks at the clock.

$ python examples/lab/step7_guess.py
right guesses are told from wrong ones: True
"""

import random
import time

import numpy as np

import ksmemu

NR_PAGES = 301


def pages(first):
    """Return mergeable pages that are numbered from `first` on."""
    array = ksmemu.AddressSpace(NR_PAGES * 4096).ndarray((NR_PAGES, 512), "u8")
    ksmemu.madvise(array)
    array[:] = np.arange(first, first + NR_PAGES)[:, np.newaxis]
    return array


def nanoseconds(page):
    """Return how long a first write takes."""
    since = time.perf_counter_ns()
    page[0] = 0
    return time.perf_counter_ns() - since


with ksmemu.Ksmd(run=1, pages_to_scan=10_000) as ksmd:
    secret, right, wrong = pages(1000), pages(1000), pages(5000)
    ksmd.wait_full_scans(3)
    ksmd.write("run", 0)
    nr_slower = 0
    for pair in zip(right, wrong, strict=True):
        took = {n: nanoseconds(pair[n]) for n in random.sample((0, 1), 2)}  # the second of two is quicker
        nr_slower += took[0] > took[1]
    print("right guesses are told from wrong ones:", nr_slower > 0.8 * NR_PAGES)

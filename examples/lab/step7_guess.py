"""Step 7: can sharing be seen? Somebody guesses what another process's memory holds, and looks at the clock.

$ python examples/lab/step7_guess.py
right guesses are told from wrong ones: True
"""

import statistics
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


def nanoseconds(array):
    """Return the median time of a first write to a page."""
    times = []
    for page in array:
        since = time.perf_counter_ns()
        page[0] = 0
        times.append(time.perf_counter_ns() - since)
    return statistics.median(times)


with ksmemu.Ksmd(run=1, pages_to_scan=10_000) as ksmd:
    secret, right, wrong = pages(1000), pages(1000), pages(5000)
    ksmd.wait_full_scans(3)
    ksmd.write("run", 0)
    ratio = nanoseconds(right) / nanoseconds(wrong)
    print("right guesses are told from wrong ones:", ratio > 1.5)

"""Step 1: when does a page merge? Scan by scan, with 20 pages twice.

$ python examples/lab/step1_two_scans.py
scan 1: volatile 40, shared 0, sharing 0
scan 2: volatile 0, shared 20, sharing 20
scan 3: volatile 0, shared 20, sharing 20
scan 4: volatile 0, shared 20, sharing 20
"""

import time

import numpy as np

import ksmemu

NR_PAGES = 20
NR_SCANS = 4
HOUR_MS = 3_600_000


def scan_once(number):
    """Wake ksmd, which sleeps for an hour after each scan: a new value of a tunable does."""
    before = ksmd.read("full_scans")
    ksmd.write("sleep_millisecs", HOUR_MS + number)
    ksmd.write("run", 1)
    while ksmd.read("full_scans") == before:
        time.sleep(0.001)


with ksmemu.Ksmd(pages_to_scan=10_000, sleep_millisecs=HOUR_MS) as ksmd:
    twins = [ksmemu.AddressSpace(NR_PAGES * 4096).ndarray((NR_PAGES, 512), "u8") for _ in range(2)]
    for twin in twins:
        ksmemu.madvise(twin)
        twin[:, 0] = np.arange(NR_PAGES) + 1
    for number in range(1, NR_SCANS + 1):
        scan_once(number)
        figures = (f"{name} {ksmd.read('pages_' + name)}" for name in ("volatile", "shared", "sharing"))
        print(f"scan {number}:", ", ".join(figures))

"""Step 5: what if somebody goes on writing? Half of the pages are written before every scan.

$ python examples/lab/step5_volatile.py
saved 20 volatile 40
"""

import time

import numpy as np

import ksmemu

NR_SCANS = 6
HOUR_MS = 3_600_000

with ksmemu.Ksmd(pages_to_scan=10_000, sleep_millisecs=HOUR_MS, smart_scan=0) as ksmd:
    twins = [ksmemu.AddressSpace(40 * 4096).ndarray((40, 512), "u8") for _ in range(2)]
    for twin in twins:
        ksmemu.madvise(twin)
        twin[:, 0] = np.arange(40) + 1
    for number in range(1, NR_SCANS + 1):
        for twin in twins:
            twin[:20, 1] = number  # both twins, and with the same: equal they are, all the time
        before = ksmd.read("full_scans")
        ksmd.write("sleep_millisecs", HOUR_MS + number)  # a new value wakes ksmd
        ksmd.write("run", 1)
        while ksmd.read("full_scans") == before:
            time.sleep(0.001)
    print("saved", ksmd.read("pages_sharing"), "volatile", ksmd.read("pages_volatile"))

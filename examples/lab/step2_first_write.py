"""Step 2: what does a write to a merged page cost? Page faults are counted, over 100 pages.

$ python examples/lab/step2_first_write.py
pages saved: 100
faults of the first write to each page:  100
faults of the second write to each page: 0
the twin was not written to: True
"""

import resource

import numpy as np

import ksmemu

NR_PAGES = 100


def faults_of_writing(array, value):
    """Write to each page, and return how many page faults that took."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    array[:, 1] = value
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


with ksmemu.Ksmd(run=1, pages_to_scan=10_000) as ksmd:
    twins = [ksmemu.AddressSpace(NR_PAGES * 4096).ndarray((NR_PAGES, 512), "u8") for _ in range(2)]
    for twin in twins:
        ksmemu.madvise(twin)
        twin[:, 0] = np.arange(NR_PAGES)
    ksmd.wait_full_scans(3)
    ksmd.write("run", 0)
    print("pages saved:", ksmd.read("pages_sharing"))
    print("faults of the first write to each page: ", faults_of_writing(twins[0], 1))
    print("faults of the second write to each page:", faults_of_writing(twins[0], 2))
    print("the twin was not written to:", bool((twins[1][:, 1] == 0).all()))

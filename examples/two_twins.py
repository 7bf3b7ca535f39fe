"""Two address spaces with the same content share it, until one of them writes.

$ python examples/two_twins.py
1000 pages saved
999 pages saved; the twins are [7 1] and [0 1]
"""

import numpy as np

import ksmemu

with ksmemu.Ksmd(run=1, pages_to_scan=10_000) as ksmd:
    twins = [ksmemu.AddressSpace(1000 * 4096).ndarray((1000, 512), "u8") for _ in range(2)]
    for twin in twins:
        ksmemu.madvise(twin)
        twin[:] = np.arange(512_000).reshape(1000, 512)
    ksmd.wait_full_scans(3)
    print(ksmd.read("pages_sharing"), "pages saved")
    twins[0][0, 0] = 7
    ksmd.wait_full_scans(3)
    first, second = (twin[0, :2] for twin in twins)
    print(ksmd.read("pages_sharing"), f"pages saved; the twins are {first} and {second}")

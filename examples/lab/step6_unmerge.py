"""Step 6: can it be undone? All of it, and at what price is known beforehand.

$ python examples/lab/step6_unmerge.py
run=1: 600 pages saved, pool 1200 KiB, unmerging takes 3600 KiB
run=2: 0 pages saved, pool 0 KiB, unmerging takes 0 KiB
bytes are right: True
"""

import numpy as np

import ksmemu

with ksmemu.Ksmd(run=1, pages_to_scan=10_000) as ksmd:
    twins = [ksmemu.AddressSpace(300 * 4096).ndarray((300, 512), "u8") for _ in range(3)]
    for twin in twins:
        ksmemu.madvise(twin)
        twin[:] = np.arange(300 * 512).reshape(300, 512)
    ksmd.wait_full_scans(3)
    for run in (1, 2):
        ksmd.write("run", run)
        pool, needed = ksmd.read("pool_bytes") >> 10, ksmd.read("unmerge_bytes") >> 10
        saved = ksmd.read("pages_sharing")
        print(f"run={run}: {saved} pages saved, pool {pool} KiB, unmerging takes {needed} KiB")
    print("bytes are right:", all((twin.ravel() == np.arange(300 * 512)).all() for twin in twins))

"""Step 4: how many pages may share a frame? 100 equal pages, and a limit.

$ python examples/lab/step4_sharing_limit.py
10 frames, 90 pages saved
1 chain of 10 frames
"""

import ksmemu

LIMIT = 10

with ksmemu.Ksmd(run=1, pages_to_scan=10_000, max_page_sharing=LIMIT) as ksmd:
    equal = ksmemu.AddressSpace(100 * 4096).ndarray(100 * 4096, "u1")
    ksmemu.madvise(equal)
    equal[:] = 7
    ksmd.wait_full_scans(3)
    print(ksmd.read("pages_shared"), "frames,", ksmd.read("pages_sharing"), "pages saved")
    print(ksmd.read("stable_node_chains"), "chain of", ksmd.read("stable_node_dups"), "frames")

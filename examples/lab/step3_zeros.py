"""Step 3: what about pages of zeros? They are the most common page there is.

$ python examples/lab/step3_zeros.py
use_zero_pages=0: pages_shared 2, pages_sharing 498, ksm_zero_pages 0, general_profit 2007808
use_zero_pages=1: pages_shared 0, pages_sharing 0, ksm_zero_pages 500, general_profit 2048000
"""

import ksmemu

NR_PAGES = 500


def show(use_zero_pages):
    """Print what becomes of pages of zeros."""
    with ksmemu.Ksmd(run=1, pages_to_scan=10_000, use_zero_pages=use_zero_pages) as ksmd:
        zeros = ksmemu.AddressSpace(NR_PAGES * 4096).ndarray(NR_PAGES * 4096, "u1")
        ksmemu.madvise(zeros)
        zeros[:] = 0
        ksmd.wait_full_scans(3)
        names = ("pages_shared", "pages_sharing", "ksm_zero_pages", "general_profit")
        print(f"use_zero_pages={use_zero_pages}:", ", ".join(f"{name} {ksmd.read(name)}" for name in names))


show(0)
show(1)

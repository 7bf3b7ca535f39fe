"""A merge policy of one's own: what few pages share stays where it is.

ksmd imports the class by name, so it must find the module: here by PYTHONPATH.

$ python examples/own_policy.py
written: 300 pages saved with 200 frames
own_policy:OnlyCrowds: 200 pages saved with 100 frames
"""

import os
from pathlib import Path

import numpy as np

import ksmemu
from ksmemu.policy import Policy

NR_PAGES = 100


class OnlyCrowds(Policy):
    """A frame is worth it for three pages or more."""

    def chosen(self, nr_equal: np.ndarray) -> np.ndarray:
        """Return which of these groups of equal pages to merge."""
        return nr_equal >= 3


def saved(policy: str) -> str:
    """Let three workers hold 100 pages that all have, and two of them 100 more."""
    with ksmemu.Ksmd(run=1, pages_to_scan=10_000, smart_scan=0, policy=policy) as ksmd:
        spaces = [
            ksmemu.AddressSpace(2 * NR_PAGES * 4096).ndarray((2 * NR_PAGES, 512), "u8") for _ in range(3)
        ]
        for number, space in enumerate(spaces):
            ksmemu.madvise(space)
            space[:NR_PAGES] = np.arange(NR_PAGES)[:, None] + 1
            space[NR_PAGES:] = np.arange(NR_PAGES)[:, None] + 1000 + (5000 if number == 2 else 0)
        ksmd.wait_full_scans(4)
        return f"{ksmd.read('pages_sharing')} pages saved with {ksmd.read('pages_shared')} frames"


if __name__ == "__main__":
    os.environ["PYTHONPATH"] = os.fspath(Path(__file__).parent)
    for policy in ("written", "own_policy:OnlyCrowds"):
        print(f"{policy}: {saved(policy)}")

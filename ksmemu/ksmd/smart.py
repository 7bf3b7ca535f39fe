"""Smart scan: a page that was looked at in vain is looked at less often.

Source: should_skip_rmap_item() and skip_age(), mm/ksm.c.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ksmemu.ksmd.ranges import Pages
from ksmemu.ksmd.rmap import Rmap, State

_NEVER_BELOW = 3
_MAX_AGE = 255


def skip(rmap: Rmap, pages: Pages) -> npt.NDArray[np.bool_]:
    """Return for each page whether this visit passes it over, and note the visit.

    The visits of a page that never merges are the full scans 1, 2, 3, 4, 6, 9, 14, 23, 32, 41, … Merged pages
    are always looked at, and do not age.
    """
    is_ours = rmap.state[pages] <= State.UNSTABLE
    skipped = np.zeros(len(pages), dtype=np.bool_)
    skipped[is_ours] = visit(rmap, pages[is_ours])
    return skipped


def visit(rmap: Rmap, ours: Pages) -> npt.NDArray[np.bool_]:
    """Note a visit to pages that are not merged, or no longer; return of each whether it passes them over."""
    age = rmap.age[ours]
    rmap.age[ours] = np.minimum(age.astype(np.int64) + 1, _MAX_AGE)
    is_old = age >= _NEVER_BELOW
    may_skip: npt.NDArray[np.bool_] = is_old & (rmap.skips[ours] > 0)
    rmap.skips[ours[may_skip]] -= 1
    looked_at = is_old & ~may_skip
    rmap.skips[ours[looked_at]] = skips_after(age[looked_at])
    return may_skip


def skips_after(age: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Return how many visits are skipped after one at this age."""
    return np.select([age <= 3, age <= 5, age <= 8], [1, 2, 4], 8).astype(np.uint8)

"""Smart scan: a page that was looked at in vain is looked at less often.

Source: should_skip_rmap_item() and skip_age(), mm/ksm.c.
"""

from __future__ import annotations

import numpy as np

from ksmemu.ksmd.rmap import Rmap, State
from ksmemu.ksmd.stretch import Index, Mask, Stretch

_NEVER_BELOW = 3
_MAX_AGE = 255
_AGES = np.arange(_MAX_AGE + 1)
_SKIPS_AFTER = np.select([_AGES <= 3, _AGES <= 5, _AGES <= 8], [1, 2, 4], 8).astype(np.uint8)
"""How many visits are skipped after one at an age."""


def skip(rmap: Rmap, stretch: Stretch) -> Mask:
    """Return for each page whether this visit passes it over, and note the visit.

    The visits of a page that never merges are the full scans 1, 2, 3, 4, 6, 9, 14, 23, 32, 41, … Merged pages
    are always looked at, and do not age.
    """
    is_ours = rmap.in_states(stretch, State.NEW, State.UNSTABLE)
    return visit(rmap, stretch.index, is_ours) if np.count_nonzero(is_ours) else is_ours


def visit(rmap: Rmap, index: Index, is_ours: Mask | np.bool_ = np.True_) -> Mask:
    """Note a visit to pages that are not merged, or no longer; return of each whether it is passed over."""
    age, skips = rmap.age[index], rmap.skips[index]
    is_old = is_ours & (age >= _NEVER_BELOW)
    skipped: Mask = is_old & (skips > 0)
    looked_at = is_old ^ skipped  # and no visit of theirs is to be skipped any more
    skips = skips - skipped
    if np.count_nonzero(looked_at):
        skips += _SKIPS_AFTER.take(age) * looked_at
    rmap.skips[index] = skips
    rmap.age[index] = age + (is_ours & (age < _MAX_AGE))
    return skipped

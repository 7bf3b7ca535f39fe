"""How the pages of a space look, by the books."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ksmemu.control.look import Look
from ksmemu.ksmd.rmap import State

_OF_STATE = {
    State.ABSENT: Look.ABSENT,
    State.NEW: Look.OWN,
    State.WRITTEN: Look.VOLATILE,
    State.UNSEEN: Look.VOLATILE,
    State.SETTLED: Look.OWN,
    State.SKIPPED: Look.OWN,
    State.UNSTABLE: Look.OWN,
    State.ORDERED: Look.OWN,
    State.MERGED: Look.MERGED,
    State.ZERO: Look.ZERO,
    State.REHOMING: Look.BROKEN,
    State.LEFT: Look.MERGED,
}

LOOKS: npt.NDArray[np.uint8] = np.array([_OF_STATE[state] for state in State], dtype=np.uint8)
"""The Look of a page by its State, as far as the books know."""

"""How long the first write of a page takes, as its writer sees it; and how far apart two samples lie."""

import gc
import time

import numpy as np

from tests.support.procmaps import PAGE


def first_writes(state, pages):
    """Write to pages of a worker's space in this order; return for each of them how many ns its write took.

    Each page is read before, as an attacker can do too: else it would count what lies in a cache by chance.
    """
    memory = memoryview(state.space.view(state.start, state.space.size)).cast("B")
    now, taken = time.perf_counter_ns, []
    gc.disable()
    for page in pages:
        at = page * PAGE
        bytes(memory[at : at + PAGE])
        before = now()
        memory[at] = 1
        taken.append(now() - before)
    gc.enable()
    memory.release()
    return taken


def distance(left, right):
    """Return the Kolmogorov-Smirnov statistic: 0, they are the same, to 1, they have nothing in common."""
    everything = np.concatenate([left, right])
    parts = [np.searchsorted(np.sort(one), everything, side="right") / len(one) for one in (left, right)]
    return float(np.abs(parts[0] - parts[1]).max())


def critical_distance(nr, chance):
    """Return the distance that two samples of nr of the same distribution exceed with this chance.

    Source: Smirnov (1948), the asymptotic formula.
    """
    return float(np.sqrt(-np.log(chance / 2) / nr))

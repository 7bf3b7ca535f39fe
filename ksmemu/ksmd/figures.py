"""Answer whoever asks for figures: counters of domains and of workers, from the books as they stand.

control/figures.py -> figures.py. Cheap enough to be asked every second: no page is looked at.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from ksmemu import wire
from ksmemu.control.figures import Figures, SpaceFigures
from ksmemu.control.look import Look
from ksmemu.ksmd.domain import Domain
from ksmemu.ksmd.mm_slot import MmSlot
from ksmemu.ksmd.page_map import LOOKS
from ksmemu.units import PAGE_SIZE
from ksmemu.wire import WireError


def figures(domains: Sequence[Domain], body: dict[str, object], full_scans: int, began: float) -> Figures:
    """Return the answer.

    Args:
        domains: of which whoever asks may know.
        began: when ksmd did (CLOCK_MONOTONIC).

    Raises:
        WireError: it is no such question.
    """
    if body != {"figures": wire.VERSION}:
        raise WireError(f"a question for figures of another version than {wire.VERSION}")
    return {
        "full_scans": full_scans,
        "seconds": time.monotonic() - began,
        "cpu_seconds": time.process_time(),
        "domains": {str(domain.key): dict(domain.counters()) for domain in domains},
        "workers": [
            {
                "pid": worker.pid,
                "domain": str(domain.key),
                "spaces": [_space(domain, slot) for slot in worker.slots],
            }
            for domain in domains
            for worker in domain.workers
            if worker.slots
        ],
    }


def _space(domain: Domain, slot: MmSlot) -> SpaceFigures:
    looks = np.zeros(len(Look), dtype=np.int64)
    np.add.at(looks, LOOKS, slot.rmap.counts)
    if domain.rules.is_secure:
        alone = len(domain.alone(slot))
        looks[Look.MERGED] -= alone
        looks[Look.OWN] += alone
    looks[Look.ABSENT] = slot.nr_pages - looks[Look.OWN :].sum()
    return {"start": slot.start, "end": slot.start + slot.nr_pages * PAGE_SIZE, "looks": looks.tolist()}

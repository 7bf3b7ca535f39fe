"""What ksmd says of why memory is not merged, page by page, and whether it agrees with the counters."""

import os
from collections import Counter

from ksmemu.control.explain import explain
from ksmemu.control.reasons import Reason
from ksmemu.instance import Instance
from tests.support.procmaps import PAGE

UNSHARED = (
    Reason.UNIQUE,
    Reason.SHARING_LIMIT,
    Reason.OTHER_NODE,
    Reason.OTHER_DOMAIN,
    Reason.NO_FILL,
)
VOLATILE = (
    Reason.VOLATILE,
    Reason.LOOKED_AT,
    Reason.BEING_MERGED,
    Reason.MAPPING_BUDGET,
    Reason.NO_ROOM,
)


def ask(ksmd, pid=None, address=None):
    return explain(Instance.resolve(ksmd.directory), pid, address)


def totals(ksmd, pid=None):
    """Return Reason -> pages that hold data, of one process or of all."""
    found = Counter()
    for worker in ask(ksmd, pid)["workers"]:
        found += Counter(worker["totals"])
    return {reason: found[reason.words] for reason in Reason if reason.words in found}


def by_page(ksmd, pid=None):
    """Return address -> Reason of every page of a process, by default this one."""
    return {address: Reason(row[2]) for row in rows(ksmd, pid) for address in range(row[0], row[1], PAGE)}


def rows(ksmd, pid=None):
    """Return the rows of a process; those of each space are ascending, without gaps, and maximal."""
    (worker,) = ask(ksmd, pid or os.getpid())["workers"]
    nr = Counter()
    for space in worker["spaces"]:
        assert space["rows"][0][0] == space["start"]
        assert space["rows"][-1][1] == space["end"]
        for row, after in zip(space["rows"], space["rows"][1:], strict=False):
            assert row[0] < row[1] == after[0]
            assert row[2] != after[2]
        for row in space["rows"]:
            nr[Reason(row[2]).words] += row[3]
    assert +nr == worker["totals"]
    return [row for space in worker["spaces"] for row in space["rows"]]


def reasons(ksmd, memory):
    """Return the Reason of each page of a Memory of this process."""
    found = by_page(ksmd)
    return [found[memory.at(page)] for page in range(memory.nr_pages)]


def assert_adds_up(ksmd):
    """The pages of each reason are those that the counters count. Only at rest."""
    found, counters = Counter(totals(ksmd)), ksmd.counters()
    assert found[Reason.MERGED] == counters["pages_shared"] + counters["pages_sharing"]
    assert sum(found[reason] for reason in UNSHARED) == counters["pages_unshared"]
    assert sum(found[reason] for reason in VOLATILE) == counters["pages_volatile"]
    assert found[Reason.ZERO_PAGE] == counters["ksm_zero_pages"]

"""The kernel's tracepoints and our events of one workload: the same names, fields and counts, scan by scan.

ksm_remove_rmap_item is left out of the comparison: the kernel tells only of the items of a page that it finds
gone, and not of the last of them; a replay needs every page that leaves. Everything else agrees.
"""

from collections import Counter

import pytest

import ksmemu
from ksmemu.ksmd.events import FIELDS
from tests.support import anonymous, tracefs
from tests.support.replay import events_of, switch

pytestmark = pytest.mark.root
NR_PAGES, NR_SCANS = 13, 4
TWINS = [1, 2, 3, 4, 5]
MERGES = {"ksm_merge_one_page", "ksm_merge_with_ksm_page"}
ITEM = "ksm_remove_rmap_item"
OTHERS = FIELDS.keys() - MERGES - {"ksm_start_scan", "ksm_stop_scan", ITEM}


def test_names_and_fields_are_those_of_this_kernel():
    with tracefs.mounted() as folder:
        names = [path.name for path in (folder / "events/ksm").iterdir() if path.is_dir()]
        assert {name: tracefs.fields(folder, name) for name in names} == FIELDS


class Stages:
    """What was told in each stage of a workload."""

    def __init__(self, engine, events):
        self.engine, self._events, self._seen = engine, events, 0
        self.told = {}

    def end(self, name):
        """Scan everything some times; what came since the last stage belongs to this one."""
        for _ in range(NR_SCANS):
            self.engine.step()
        events = self._events()[self._seen :]
        self._seen += len(events)
        self.told[name] = {
            "merges": [merges for scan in _scans(events) if (merges := _merges(scan))],
            "others": Counter(e["event"] for e in events if e["event"] in OTHERS),
            "rmap_entries": [e["rmap_entries"] for e in events if e["event"] == "ksm_stop_scan"][-1],
            "items": sum(e["event"] == ITEM for e in events),
        }


def _scans(events):
    """Return the events of each full scan."""
    scans, is_scanning = [], False
    for event in events:
        if event["event"] == "ksm_start_scan":
            scans.append([])
            is_scanning = True
        elif event["event"] == "ksm_stop_scan":
            is_scanning = False
        elif is_scanning:
            scans[-1].append(event)
    return scans


def _merges(events):
    """Return how many pages were merged into what."""
    merges = (event for event in events if event["event"] in MERGES)
    return Counter((event["event"], event.get("ksm_page"), event["err"]) for event in merges)


@pytest.fixture
def told(engines):
    """Run a workload on both; return what the kernel told and what we told, by stage."""

    def run(workload, only_ours=None, **tunables):
        kernel, own = engines(only_ours, **tunables)
        with tracefs.kernel_trace() as events:
            theirs = Stages(kernel, events)
            workload(theirs, kernel)
            kernel.leave()
        switch(own.ksmd, 1)
        ours = Stages(own, lambda: events_of(own.ksmd))
        workload(ours, own)
        own.leave()
        return theirs.told, ours.told

    return run


def but_items(told):
    return {stage: {kind: n for kind, n in what.items() if kind != "items"} for stage, what in told.items()}


def test_twins_are_merged_written_unmerged_and_left(told):
    def workload(stages, engine):
        one, other, third = (engine.member(NR_PAGES) for _ in range(3))
        one.put(0, TWINS)
        other.put(3, TWINS)
        other.put(0, [7])
        third.put(0, [7])
        stages.end("merged")
        one.put_byte(2, 1, 1777, 1)
        stages.end("one is written")
        one.put(0, [11])
        other.put(3, [11])
        stages.end("both are written alike")
        one.advise(3, 2, ksmemu.MADV_UNMERGEABLE)
        other.advise(6, 2, ksmemu.MADV_UNMERGEABLE)
        stages.end("both are unmerged")
        engine.unmerge()
        engine.ksmd.write("run", 1)
        stages.end("run is 2, then 1")
        one.exit()
        stages.end("one exits")
        other.exit()
        stages.end("the other exits")

    kernel, own = told(workload)
    assert but_items(own) == but_items(kernel)
    first, second = (("ksm_merge_with_ksm_page", is_ksm_page, 0) for is_ksm_page in (False, True))
    assert own["merged"]["merges"] == [{first: 6, second: 6}]
    assert own["both are written alike"]["others"] == {"ksm_remove_ksm_page": 1}
    assert own["both are unmerged"]["others"] == {"ksm_remove_ksm_page": 2}
    assert own["one exits"]["others"]["ksm_exit"] == 1
    assert own["merged"]["others"] == {"ksm_enter": 3}


def test_a_limit_of_sharing_makes_more_ksm_pages(told):
    def workload(stages, engine):
        for member in [engine.member(NR_PAGES) for _ in range(2)]:
            member.put(0, [1] * 5 + [2] * 3)
        stages.end("merged")

    kernel, own = told(workload, max_page_sharing=3)
    assert but_items(own) == but_items(kernel)


def zeros(stages, engine):
    engine.member(NR_PAGES).put(0, [0, 0, 0, 1, 1])
    stages.end("merged")


def test_it_would_be_noticed_if_other_events_were_told(told):
    kernel, own = told(zeros, use_zero_pages=1, only_ours={"use_zero_pages": 0})
    assert but_items(own) != but_items(kernel)


def test_zeros_are_merged_with_the_zero_page(told):
    kernel, own = told(zeros, use_zero_pages=1)
    assert but_items(own) == but_items(kernel)
    assert own["merged"]["merges"][0]["ksm_merge_one_page", None, 0] == 3


def test_the_advisor_tells_of_each_full_scan(told):
    def workload(stages, engine):
        engine.ksmd.write("advisor_mode", "scan-time" if engine.crew is anonymous else 1)
        engine.member(NR_PAGES).put(0, TWINS)
        stages.end("scanned")

    kernel, own = told(workload)
    assert but_items(own) == but_items(kernel)
    assert own["scanned"]["others"]["ksm_advisor"] == NR_SCANS


def test_what_the_kernel_tells_of_items_would_not_be_enough(told):
    """The reason for the difference above: one of three merged pages is written, and the kernel is silent."""

    def workload(stages, engine):
        member = engine.member(NR_PAGES)
        member.put(0, [1, 1, 1])
        stages.end("merged")
        member.put(0, [2])
        stages.end("written")

    kernel, own = told(workload)
    assert (kernel["written"]["items"], own["written"]["items"]) == (0, 1)

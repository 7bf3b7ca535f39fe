"""Smart scan, one full scan after the other: which visits are saved, and what the counters say meanwhile."""

import pytest

pytestmark = pytest.mark.root
STEPPED = ("full_scans", "pages_skipped", "pages_scanned", "pages_unshared", "pages_volatile", "pages_shared")


def step_and_note(engine, times):
    first = {name: engine.ksmd.read(name) for name in STEPPED}
    for _ in range(times):
        engine.step()
        engine.notes.append({name: engine.ksmd.read(name) - first[name] for name in STEPPED})


def test_unique_pages_are_skipped_in_the_same_scans(agree):
    def workload(engine):
        engine.member(13).put(0, range(1, 8))
        step_and_note(engine, 61)

    agree(workload, smart_scan=1)


def test_merged_pages_are_never_skipped(agree):
    def workload(engine):
        member = engine.member(13)
        member.put(0, [1, 1, 3, 3])
        member.put(11, [2])
        step_and_note(engine, 17)

    agree(workload, smart_scan=1)


def test_without_smart_scan_none_is_skipped(agree):
    def workload(engine):
        engine.member(13).put(0, [1, 2, 3, 3])
        step_and_note(engine, 11)

    agree(workload)

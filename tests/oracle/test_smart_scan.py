"""Smart scan, one full scan after the other: which visits are saved, and what the counters say meanwhile."""

import pytest

pytestmark = pytest.mark.root
STEPPED = (
    "full_scans",
    "pages_skipped",
    "pages_scanned",
    "pages_unshared",
    "pages_volatile",
    "pages_shared",
    "pages_sharing",
)


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


def put_apart(member, first, numbers):
    """Write contents to pages that lie so far apart that none is frozen with another."""
    for nth, number in enumerate(numbers):
        member.put(first + 7 * nth, [number])


@pytest.mark.parametrize("age", [3, 11])
def test_a_page_finds_no_partner_in_a_scan_that_skips_it(agree, age):
    """Old pages and new ones become equal; each pair merges in the first scan that looks at both."""

    def workload(engine):
        one, other = engine.member(101), engine.member(101)
        put_apart(one, 0, range(1, 8))
        step_and_note(engine, age)
        put_apart(other, 0, [1, 3, 3, 5])
        step_and_note(engine, 1)
        put_apart(other, 61, [7, 11])
        put_apart(one, 61, [11])
        step_and_note(engine, 43)

    agree(workload, smart_scan=1)


@pytest.mark.parametrize("age", [5, 13])
def test_a_page_is_written_while_it_is_skipped(agree, age):
    def workload(engine):
        one = engine.member(101)
        put_apart(one, 0, range(1, 8))
        step_and_note(engine, age)
        put_apart(one, 0, [2])
        step_and_note(engine, 2)
        put_apart(one, 14, [4, 5])
        step_and_note(engine, 43)

    agree(workload, smart_scan=1)


def test_a_merged_page_that_is_written_is_visited_again(agree):
    """It did not age while it was merged; the scan that finds it written is its next visit."""

    def workload(engine):
        one, other = engine.member(101), engine.member(101)
        for member in (one, other):
            member.put(0, [1])
        one.put(30, [9])
        step_and_note(engine, 5)
        one.put(0, [2])
        step_and_note(engine, 12)
        other.put(0, [2])
        step_and_note(engine, 14)

    agree(workload, smart_scan=1)

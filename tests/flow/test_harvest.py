"""Step 1: what was written since the last scan is not merged, and found whoever wrote it."""

import os

from tests.support.pages import content
from tests.support.procmaps import PAGE


def test_a_page_written_between_two_scans_is_not_merged(stepped, memory):
    twins = [memory(stepped) for _ in range(2)]
    for twin in twins:
        twin.fill(range(23))
    stepped.scan()
    twins[0].write(7, b"volatile")
    stepped.scan()
    counters = stepped.counters()
    assert (counters["pages_shared"], counters["pages_sharing"]) == (22, 22)
    assert counters["pages_volatile"] == 1


def test_a_page_written_by_a_system_call_is_not_merged(stepped, memory):
    twins = [memory(stepped) for _ in range(2)]
    for twin in twins:
        twin.fill(range(23))
    stepped.scan()
    source = os.memfd_create("source")
    os.write(source, content("of the file"))
    with twins[0].space.view(twins[0].at(5), PAGE) as view:
        assert os.preadv(source, [view], 0) == PAGE
    os.close(source)
    stepped.scan(2)
    assert stepped.read("pages_shared") == 22
    assert twins[0].read(5) == content("of the file")


def test_a_page_that_goes_on_being_written_is_never_merged(stepped, memory):
    twins = [memory(stepped) for _ in range(2)]
    for turn in range(7):
        for twin in twins:
            twin.write(11, content(turn))
        stepped.scan()
    assert stepped.read("pages_shared") == 0
    assert stepped.read("merges") == 0


def test_pages_written_after_the_advice_are_found(stepped, memory):
    twins = [memory(stepped, 1009) for _ in range(2)]
    stepped.scan(3)
    assert stepped.read("pages_tracked") == 0
    for twin in twins:
        twin.fill(range(500, 523))
    stepped.scan(2)
    assert stepped.read("pages_tracked") == 46
    assert stepped.read("pages_sharing") == 23


def test_copies_are_found_and_brought_home(stepped, memory):
    twins = [memory(stepped) for _ in range(2)]
    for twin in twins:
        twin.fill(range(23))
    stepped.scan(2)
    twins[1].write(3, b"one")
    twins[1].write(19, b"two")
    assert stepped.read("pages_broken") == 0
    stepped.scan()
    assert stepped.read("pages_broken") == 2
    assert stepped.read("pages_rehomed") == 2
    assert stepped.read("pages_sharing") == 21
    assert twins[1].space.blocks_bytes() == 2 * PAGE

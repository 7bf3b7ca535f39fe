"""The whole flow once more with the other tracker: checksums instead of the kernel's record of writes."""

import pytest

from ksmemu import MADV_UNMERGEABLE
from tests.support import procmaps
from tests.support.pages import content
from tests.support.procmaps import PAGE


@pytest.fixture
def comparing(start_stepped):
    return start_stepped(module="tests.support.checksum_ksmd")


@pytest.fixture
def twins(comparing, memory):
    made = [memory(comparing) for _ in range(2)]
    for twin in made:
        twin.fill(range(23))
    return made


def test_no_userfaultfd_records_writes(twins):
    names = [what for what in procmaps.descriptors("self").values() if "userfaultfd" in what]
    assert len(names) == 1, "freeze alone"


def test_pages_merge_after_two_scans_and_not_after_one(comparing, twins):
    comparing.scan()
    assert comparing.read("merges") == 0
    comparing.scan()
    assert (comparing.read("pages_shared"), comparing.read("pages_sharing")) == (23, 23)
    assert [twin.space.blocks_bytes() for twin in twins] == [0, 0]


def test_a_page_written_between_two_scans_is_not_merged(comparing, twins):
    comparing.scan()
    twins[0].write(7, content("volatile"))
    comparing.scan()
    assert comparing.read("pages_sharing") == 22
    comparing.scan(2)
    assert comparing.read("pages_unshared") == 2


def test_a_waiting_page_that_was_written_is_not_merged_with_what_it_was(comparing, twins):
    twins[0].write(7, content("unique"))
    comparing.scan(2)
    twins[0].write(7, content("written"))
    twins[1].write(7, content("unique"))
    comparing.scan(3)
    assert comparing.read("pages_sharing") == 22
    assert twins[0].read(7) == content("written")
    assert twins[1].read(7) == content("unique")


def test_written_pages_come_home_and_merge_again(comparing, twins):
    comparing.scan(2)
    before = twins[1].read(7)
    twins[0].write(7, b"mine")
    comparing.scan()
    assert twins[0].space.blocks_bytes() == PAGE
    assert twins[1].read(7) == before
    twins[0].write(7, before)
    comparing.scan(3)
    assert comparing.read("pages_sharing") == 23


def test_advice_is_withdrawn_and_everything_unmerged(comparing, twins):
    comparing.scan(2)
    twins[0].advise(MADV_UNMERGEABLE, 5, 7)
    assert twins[0].space.blocks_bytes() == 7 * PAGE
    comparing.write("run", 2)
    assert comparing.read("pages_shared") == comparing.read("pool_bytes") == 0
    for twin in twins:
        assert all(twin.read(page) == content(repr((0, page))) for page in range(23))
    comparing.scan(2)
    assert comparing.read("pages_sharing") == 16


def test_a_waiting_page_is_found_by_one_of_its_node(comparing, memory):
    comparing.write("merge_across_nodes", 0)
    one, other, far = (memory(comparing, node=node) for node in (1, 1, 0))
    one.fill(range(1))
    comparing.scan(3)
    assert comparing.read("pages_unshared") == 1
    other.fill(range(1))
    far.fill(range(1))
    comparing.scan(3)
    assert (comparing.read("pages_sharing"), comparing.read("pages_unshared")) == (1, 1)

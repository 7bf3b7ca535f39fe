"""Step 4: pages are really one frame, the host has the memory back, the first write is a copy."""

from tests.support import procmaps
from tests.support.pages import content
from tests.support.procmaps import PAGE


def twins_of(stepped, memory, nr_pages=23):
    twins = [memory(stepped, nr_pages) for _ in range(2)]
    for twin in twins:
        twin.fill(range(nr_pages))
    stepped.scan(2)
    return twins


def test_merged_pages_map_the_same_frames(stepped, memory):
    twins = twins_of(stepped, memory)
    found = procmaps.recount([("self", twin.start, twin.end) for twin in twins])
    assert found.own == 0
    assert sorted(found.frames.values()) == [2] * 23


def test_memory_is_given_back(stepped, memory):
    twins = twins_of(stepped, memory)
    assert [twin.space.blocks_bytes() for twin in twins] == [0, 0]
    assert stepped.read("pool_bytes") == 23 * PAGE


def test_neighbours_are_one_mapping(stepped, memory):
    twins = twins_of(stepped, memory, 997)
    for twin in twins:
        assert len(procmaps.mappings("self", twin.start, twin.end)) == 1


def test_a_write_is_seen_by_its_writer_alone(stepped, memory):
    one, other = twins_of(stepped, memory)
    before = other.read(7)
    one.write(7, b"mine")
    assert one.read(7) == b"mine" + before[4:]
    assert other.read(7) == before
    stepped.scan(3)
    assert one.read(7) == b"mine" + before[4:]
    assert other.read(7) == before


def test_what_was_written_and_is_equal_again_merges_again(stepped, memory):
    one, other = twins_of(stepped, memory)
    before = other.read(7)
    one.write(7, b"mine")
    stepped.scan(2)
    assert stepped.read("pages_sharing") == 22
    one.write(7, before)
    stepped.scan(2)
    assert stepped.read("pages_sharing") == 23
    assert stepped.read("pages_shared") == 23
    assert one.space.blocks_bytes() == 0


def test_merged_pages_and_counters_agree(stepped, memory):
    twins = twins_of(stepped, memory)
    twins[0].write(11, content("own"))
    stepped.scan(2)
    found = procmaps.recount([("self", twin.start, twin.end) for twin in twins])
    counters = stepped.counters()
    assert counters["pages_shared"] == len(found.frames)
    assert counters["pages_shared"] + counters["pages_sharing"] == found.merged
    assert counters["pages_unshared"] + counters["pages_volatile"] == found.own

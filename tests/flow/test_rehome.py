"""Step 6: written pages come home, and are ordinary members of the scan again."""

from tests.support import procmaps
from tests.support.pages import content
from tests.support.procmaps import PAGE


def test_a_written_page_is_shared_memory_again(stepped, memory):
    twins = [memory(stepped) for _ in range(2)]
    for twin in twins:
        twin.fill(range(23))
    stepped.scan(2)
    twins[0].write(7, b"mine")
    assert procmaps.private_pages("self", twins[0].start, twins[0].end) == [twins[0].at(7)]
    stepped.scan()
    own = [m for m in procmaps.mappings("self", twins[0].start, twins[0].end) if "s" in m.perms]
    assert [(m.start, m.pages) for m in own] == [(twins[0].at(7), 1)]


def test_a_page_keeps_its_reference_until_it_is_home(stepped, memory):
    twins = [memory(stepped) for _ in range(2)]
    for twin in twins:
        twin.write(7, content("same"))
    stepped.scan(2)
    twins[0].write(7, b"mine")
    assert stepped.read("pages_sharing") == 1
    stepped.scan()
    assert (stepped.read("pages_shared"), stepped.read("pages_sharing")) == (1, 0)


def test_every_page_of_a_space_comes_home_after_it_was_written(stepped, memory):
    twins = [memory(stepped, 997) for _ in range(2)]
    for twin in twins:
        twin.fill(range(997))
    stepped.scan(2)
    twins[0].fill(range(997), seed=1)
    stepped.scan()
    assert twins[0].space.blocks_bytes() == 997 * PAGE
    assert len(procmaps.mappings("self", twins[0].start, twins[0].end)) == 1
    assert all(twins[0].read(page) == content(repr((1, page))) for page in range(997))
    assert stepped.read("pages_sharing") == 0

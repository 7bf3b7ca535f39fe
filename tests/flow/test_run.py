"""run: 0 stops and keeps, 1 merges, 2 unmerges and stops."""

from tests.support import procmaps
from tests.support.pages import content
from tests.support.procmaps import PAGE


def merged_twins(memory, stepped, nr_pages=23):
    twins = [memory(stepped, nr_pages) for _ in range(2)]
    for twin in twins:
        twin.fill(range(nr_pages))
    stepped.scan(2)
    assert stepped.read("pages_sharing") == nr_pages
    return twins


def test_0_keeps_what_is_merged_and_scans_no_more(start_ksmd, memory):
    ksmd = start_ksmd(run=1, pages_to_scan=1_000_003, sleep_millisecs=0)
    twins = [memory(ksmd) for _ in range(2)]
    for twin in twins:
        twin.fill(range(23))
    ksmd.wait_full_scans(3)
    ksmd.write("run", 0)
    scans = ksmd.read("full_scans")
    for value in (1, 2, 3):
        ksmd.write("sleep_millisecs", value)
    assert ksmd.read("full_scans") == scans
    assert ksmd.read("pages_sharing") == 23


def test_2_unmerges_everything_and_starts_counting_anew(stepped, memory):
    twins = merged_twins(memory, stepped)
    twins[0].write(7, b"mine")
    stepped.write("run", 2)
    counters = stepped.counters()
    for name in ("pages_shared", "pages_sharing", "pages_unshared", "ksm_zero_pages", "full_scans"):
        assert counters[name] == 0, name
    assert stepped.read("pool_bytes") == 0
    for twin in twins:
        assert twin.space.blocks_bytes() == 23 * PAGE
        assert [m.perms for m in procmaps.mappings("self", twin.start, twin.end)] == ["rw-s"]
    assert twins[0].read(7) == b"mine" + content(repr((0, 7)))[4:]
    assert all(twins[1].read(page) == content(repr((0, page))) for page in range(23))


def test_2_unmerges_zero_pages_too(start_stepped, memory):
    stepped = start_stepped(use_zero_pages=1)
    one = memory(stepped)
    one.fill_equal(range(23), bytes(PAGE))
    stepped.scan(2)
    assert stepped.read("ksm_zero_pages") == 23
    stepped.write("run", 2)
    assert stepped.read("ksm_zero_pages") == 0
    assert one.space.blocks_bytes() == 23 * PAGE


def test_1_after_2_merges_again_within_two_scans(stepped, memory):
    twins = merged_twins(memory, stepped)
    stepped.write("run", 2)
    stepped.scan()
    assert stepped.read("pages_sharing") == 0
    stepped.scan()
    assert stepped.read("pages_sharing") == 23
    assert all(twins[1].read(page) == content(repr((0, page))) for page in range(23))


def test_2_with_nothing_merged_is_no_error(start_ksmd):
    ksmd = start_ksmd()
    ksmd.write("run", 2)
    assert ksmd.read("run") == 2

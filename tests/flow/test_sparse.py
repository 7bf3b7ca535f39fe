"""A space far beyond memory costs what its data cost, in the worker and in ksmd."""

from pathlib import Path

from tests.support.pages import content
from tests.support.procmaps import PAGE

TIB = 1 << 40
NR_PAGES = 32 * TIB // PAGE
MIB = 1 << 20


def held_bytes(pid):
    """Return what a process holds: memory of its own, and page tables."""
    fields = {}
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        name, value = line.split(":")
        fields[name] = value.split()
    return sum(int(fields[name][0]) for name in ("RssAnon", "VmPTE")) * 1024


def test_32_tib_with_one_page_are_scanned_and_cost_next_to_nothing(stepped, memory):
    small = memory(stepped)
    small.write(3, content("same"))
    stepped.scan(2)
    before = held_bytes(stepped.pid), held_bytes("self")
    large = memory(stepped, NR_PAGES, noreserve=True)
    large.write(NR_PAGES // 3, content("same"))
    stepped.scan(23)
    assert stepped.read("pages_sharing") == 1
    assert large.read(NR_PAGES // 3) == content("same")
    assert large.space.blocks_bytes() == 0
    assert held_bytes(stepped.pid) - before[0] < 4 * MIB
    assert held_bytes("self") - before[1] < 4 * MIB


def test_pages_far_apart_are_found_when_they_are_written(stepped, memory):
    large = memory(stepped, NR_PAGES, noreserve=True)
    stepped.scan()
    places = range(7, NR_PAGES, NR_PAGES // 13)
    for page in places:
        large.write(page, content("same"))
    stepped.scan(2)
    assert stepped.read("pages_tracked") == len(places)
    assert stepped.read("pages_sharing") == len(places) - 1
    large.write(places[5], b"mine")
    stepped.scan()
    assert stepped.read("pages_sharing") == len(places) - 2
    stepped.write("run", 2)
    assert large.space.blocks_bytes() == len(places) * PAGE
    assert large.read(places[5], 4) == b"mine"

"""Page maps: what ksmd tells of every page is what the mappings say, and adds up to the counters."""

import os

import numpy as np
import pytest

from ksmemu import KsmError, wire
from ksmemu.control.look import Look
from ksmemu.control.page_map import NO_FRAME, page_maps
from ksmemu.instance import Instance
from ksmemu.units import PAGE_SIZE
from tests.support import procmaps
from tests.support.fakes import connect
from tests.support.pages import content

ME = os.getpid()


def ask(ksmd, *which):
    return page_maps(Instance.resolve(ksmd.directory), *which)


def looks(ksmd, one):
    """Return the look of each page of a Memory of this process, as letters."""
    (space,) = ask(ksmd, ME, one.start).spaces
    found = np.zeros(one.nr_pages, dtype=np.uint8)
    is_in = space.pages < one.nr_pages
    found[space.pages[is_in]] = space.looks[is_in]
    assert not space.looks[~is_in].any()
    return "".join(".ovMZb"[look] for look in found)


def test_each_look_where_it_really_holds(start_stepped, memory):
    ksmd = start_stepped(use_zero_pages=1)
    one, twin, other = memory(ksmd), memory(ksmd), memory(ksmd, advise=False)
    for each in (one, twin):
        each.fill(range(7))
    one.fill_equal(range(11, 14), bytes(PAGE_SIZE))
    one.write(17, content("alone"))
    other.fill([3, 5])
    other.advise(first=7, nr=1)
    assert looks(ksmd, one) == "ooooooo....ooo...o....."  # no scan has found it yet
    assert looks(ksmd, other) == "." * 3 + "o.o" + "." * 17
    ksmd.scan(1)
    assert looks(ksmd, one) == "vvvvvvv....vvv...v....."
    ksmd.scan(1)
    assert looks(ksmd, one) == "MMMMMMM....ZZZ...o....."
    one.write(2, content("new"))
    one.write(12, content("new too"))
    assert looks(ksmd, one) == "MMbMMMM....ZbZ...o....."  # before any scan has found it
    assert looks(ksmd, twin) == "MMMMMMM" + "." * 16
    ksmd.scan(1)
    assert looks(ksmd, one) == "MMvMMMM....ZvZ...o....."


def test_frames_and_counts_equal_counters_and_a_recount(start_stepped, memory):
    ksmd = start_stepped(max_page_sharing=5)
    spaces = [memory(ksmd) for _ in range(3)]
    for one in spaces:
        one.fill(range(7))
        one.fill_equal(range(8, 13), b"\xff" * PAGE_SIZE)
        one.write(19, content(repr(one.start)))
    ksmd.scan(2)
    found = ask(ksmd)
    merged = [space.frames[space.looks == Look.MERGED] for space in found.spaces]
    frames, pages = np.unique(np.concatenate(merged), return_counts=True)
    assert (len(frames), pages.sum()) == (7 + 3, 3 * (7 + 5))
    assert (len(frames), pages.sum() - len(frames)) == (
        ksmd.read("pages_shared"),
        ksmd.read("pages_sharing"),
    )
    assert all((space.frames[space.looks != Look.MERGED] == NO_FRAME).all() for space in found.spaces)
    recount = procmaps.recount([(ME, one.start, one.end) for one in spaces])
    assert {frame: nr for (_pool, frame), nr in recount.frames.items()} == dict(
        zip(frames.tolist(), pages.tolist(), strict=True)
    )
    assert [space.counts().tolist() for space in found.spaces] == [[23 - 13, 1, 0, 12, 0, 0]] * 3
    top = found.contents[0]
    assert (top["pages"], top["frames"], top["is_fill"], top["head"][:4]) == (15, 3, True, "ffff")
    assert [(content["pages"], content["is_fill"]) for content in found.contents[1:]] == [(3, False)] * 7


def test_a_secure_ksmd_does_not_call_pages_merged_that_are_alone(start_stepped, memory):
    ksmd = start_stepped(secure=True)
    one, twin = memory(ksmd), memory(ksmd)
    one.fill(range(7))
    twin.fill(range(3))
    ksmd.scan(2)
    assert looks(ksmd, one) == "MMMoooo" + "." * 16
    assert [content["pages"] for content in ask(ksmd).contents] == [2] * 3


def test_a_large_space_is_told_by_the_chunks_that_hold_data(start_stepped, memory):
    ksmd = start_stepped()
    one = memory(ksmd, nr_pages=1_000_003)
    one.fill([5, 700, 701, 999_999])
    ksmd.scan(2)
    (space,) = ask(ksmd, ME).spaces
    assert space.chunks.tolist() == [0, 1, 999_999 // 512]
    assert space.pages[space.looks == Look.OWN].tolist() == [5, 700, 701, 999_999]
    assert space.counts()[Look.ABSENT] == 1_000_003 - 4


def test_what_is_not_known_is_refused(ksmd, memory):
    one = memory(ksmd)
    for which in ((999999999,), (ME, one.start + 1)):
        with pytest.raises(KsmError, match="no such memory"):
            ask(ksmd, *which)
    for body in ({"pages": wire.VERSION + 1, "pid": None, "start": None}, {"pages": 1, "pid": "x"}):
        with connect(ksmd.directory) as control:
            wire.send_control(control, body)
            reply, fds = wire.receive_control(control)
        assert (reply["errno"], fds) == (71, [])

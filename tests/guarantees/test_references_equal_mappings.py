"""I2: a frame's references are the pages whose mapping names it, also broken ones until they are home."""

import os
import signal

import pytest

import ksmemu
from tests.support import books, crew, procmaps
from tests.support.books import Member
from tests.support.waiting import wait_until

NR_PAGES, NR_BROKEN = 61, 31
CONTENTS = range(1, NR_PAGES + 1)
FAST = {"run": 1, "pages_to_scan": 1_000_003, "sleep_millisecs": 1}


@pytest.fixture
def two_merged(crew_of):
    """Two members that show the same frames, and their ksmd, which has stopped scanning."""

    def merge(ksmd):
        members = [Member.join(crew_of(ksmd), NR_PAGES) for _ in range(2)]
        for member in members:
            member.call(crew.put, 0, CONTENTS)
        wait_until(lambda: ksmd.read("pages_sharing") == NR_PAGES, what="merging")
        ksmd.write("run", 0)
        books.check(ksmd, members)
        return members

    return merge


def a_discarded_copy_shows_the_frame_again(ksmd, members):
    keeper, leaver = members
    keeper.call(crew.put_byte, 0, NR_BROKEN, 1777, 0)
    assert books.check(ksmd, members).broken == NR_BROKEN
    leaver.call(crew.advise, 0, NR_PAGES, ksmemu.MADV_UNMERGEABLE)
    wait_until(lambda: ksmd.read("pages_sharing") == 0, what="the end of the unmerging")
    found = books.recount([keeper])
    assert (len(found.frames), found.merged) == (NR_PAGES, NR_PAGES)
    keeper.call(crew.discard, 0, NR_PAGES)
    assert keeper.call(crew.differing, 0, CONTENTS) == []
    books.check(ksmd, [keeper])


def stop(pid):
    """Stop a process and return when none of its threads runs any more."""
    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: set(procmaps.thread_states(pid)) == {"T"}, what="the stop")


def a_frame_outlives_a_rehoming_that_is_late(ksmd, members):
    keeper, leaver = members
    frames = {frame for _, frame in books.recount(members).frames}
    digest = leaver.call(crew.frames_digest, frames)
    keeper.call(crew.put_byte, 0, NR_BROKEN, 1777, 0)
    stop(keeper.worker.pid)
    ksmd.write("run", 1)
    wait_until(lambda: ksmd.read("pages_broken") >= NR_BROKEN, what="finding the copies")
    leaver.call(crew.advise, 1, NR_PAGES - 1, ksmemu.MADV_UNMERGEABLE)
    wait_until(lambda: ksmd.read("pages_sharing") <= 1, what="the end of the unmerging")
    books.check(ksmd, [keeper, leaver])
    assert leaver.call(crew.frames_digest, frames) == digest
    os.kill(keeper.worker.pid, signal.SIGCONT)
    assert keeper.call(crew.bytes_at, 0, NR_BROKEN, 1777) == [0] * NR_BROKEN
    assert keeper.call(crew.differing, NR_BROKEN, CONTENTS[NR_BROKEN:]) == []


def test_it_is_no_rest_while_pages_are_on_their_way_home(start_ksmd, two_merged):
    """A recount would find other than the books, and no counter tells: those who recount have to wait."""
    ksmd = start_ksmd(**FAST)
    keeper, _ = members = two_merged(ksmd)
    keeper.call(crew.put_byte, 0, NR_BROKEN, 1777, 0)
    stop(keeper.worker.pid)
    ksmd.write("run", 1)
    wait_until(lambda: ksmd.read("pages_broken") >= NR_BROKEN, what="finding the copies")
    ksmd.wait_full_scans(3)
    assert not books.is_at_rest(ksmd)
    os.kill(keeper.worker.pid, signal.SIGCONT)
    books.wait_at_rest(ksmd)
    books.check(ksmd, members)


SCENARIOS = [a_discarded_copy_shows_the_frame_again, a_frame_outlives_a_rehoming_that_is_late]


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_references_are_kept_until_pages_are_home(scenario, start_ksmd, two_merged):
    ksmd = start_ksmd(**FAST)
    scenario(ksmd, two_merged(ksmd))


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_it_would_be_noticed_if_a_break_released_the_frame(scenario, start_ksmd, two_merged):
    ksmd = start_ksmd(broken="reference", module="tests.support.ksmd_main", **FAST)
    members = two_merged(ksmd)
    with pytest.raises(AssertionError, match=r"assert \[0, 1, 2, .*\] == \[\]|pages that refer"):
        scenario(ksmd, members)

"""I5: what ksmemu takes it gives back: before the first advice, after unmerging, after close nothing."""

import os
from pathlib import Path

import pytest

import ksmemu
from tests.support import books, crew, leftovers, procmaps
from tests.support.books import Member
from tests.support.namespaces import SmallShmWorker
from tests.support.procmaps import PAGE
from tests.support.waiting import wait_until

NR_PAGES = 211
CONTENTS = [number % 53 for number in range(NR_PAGES)]
FAST = {"run": 1, "pages_to_scan": 1_000_003, "sleep_millisecs": 1}


def merge_and_break(ksmd, member):
    """Merge a space with itself, zeros among its pages, and leave some pages broken."""
    ksmd.write("run", 1)
    # Written again, so that pages which are home since a run=2 settle anew.
    member.call(crew.put, 0, CONTENTS)
    wait_until(lambda: books.recount([member]).own == 0, what="merging")
    ksmd.write("run", 0)
    member.call(crew.put_byte, 3, 17, 1777, 1)
    member.call(crew.put, 3, CONTENTS[3:20])


def unmerge_by_advice(ksmd, member):
    member.call(crew.advise, 0, NR_PAGES, ksmemu.MADV_UNMERGEABLE)
    member.call(crew.advise, 0, NR_PAGES, ksmemu.MADV_MERGEABLE)
    wait_until(lambda: ksmd.read("pages_shared") == 0, what="the end of the unmerging")


def unmerge_by_run_2(ksmd, member):
    ksmd.write("run", 2)


def unmerging_leaves_nothing(ksmd, crew_of, unmerge):
    member = Member.join(crew_of(ksmd), NR_PAGES)
    member.call(crew.put, 0, CONTENTS)
    ksmd.write("run", 0)
    unmerge_by_run_2(ksmd, member)
    before = member.call(leftovers.of_worker), leftovers.of_ksmd(ksmd)
    for _ in range(3):
        merge_and_break(ksmd, member)
        unmerge(ksmd, member)
        books.wait_written(ksmd)
        assert member.call(crew.differing, 0, CONTENTS) == []
        assert ksmd.read("pool_bytes") == 0, "the pool still holds memory"
        assert member.call(crew.own_bytes) == NR_PAGES * PAGE
        assert (member.call(leftovers.of_worker), leftovers.of_ksmd(ksmd)) == before


@pytest.mark.parametrize("unmerge", [unmerge_by_advice, unmerge_by_run_2])
def test_unmerging_leaves_nothing(unmerge, ksmd, crew_of):
    unmerging_leaves_nothing(ksmd, crew_of, unmerge)


def test_it_would_be_noticed_if_frames_were_not_punched(start_ksmd, crew_of):
    ksmd = start_ksmd(broken="punch", module="tests.support.ksmd_main", **FAST)
    with pytest.raises(AssertionError, match="the pool still holds memory"):
        unmerging_leaves_nothing(ksmd, crew_of, unmerge_by_run_2)


def test_closing_leaves_a_process_as_before_its_first_advice(ksmd, crew_of):
    worker = crew_of(ksmd)
    # Its lifeline; it has closed the one by which it said that it is ready.
    wait_until(lambda: leftovers.of_ksmd(ksmd)["descriptors"]["pipe"] == 1)
    in_ksmd = leftovers.of_ksmd(ksmd)
    before = worker.call(leftovers.of_worker)
    for _ in range(3):
        member = Member.join(worker, NR_PAGES)
        merge_and_break(ksmd, member)
        member.call(crew.close_space)
        assert member.call(leftovers.of_worker) == before
        wait_until(lambda: ksmd.read("workers") == 0, what="ksmd to notice")
        books.wait_written(ksmd)
        assert leftovers.of_ksmd(ksmd) == in_ksmd
        assert ksmd.read("pool_bytes") == 0


def test_a_process_that_never_advises_pays_nothing(crew_of, ksmd):
    worker = crew_of(ksmd)
    before = worker.call(leftovers.of_worker)
    worker.call(crew.open_ordinary_space, NR_PAGES)
    worker.call(crew.put, 0, CONTENTS)
    after = worker.call(leftovers.of_worker)
    assert after == before
    assert ksmd.read("workers") == 0


def test_who_is_killed_at_any_instant_leaves_no_name(tmp_path):
    with SmallShmWorker(1 << 40) as worker:
        found = worker.call(do_and_see_names, share_with_itself, tmp_path)
        noticed = worker.call(do_and_see_names, make_object_by_name, tmp_path)
    assert found == (2, False)
    assert noticed == (0, True), "a name for an instant would not be noticed"


def do_and_see_names(state, do, directory):
    """Return how many objects there were in /dev/shm, and whether any had a name, were it for an instant."""
    os.utime("/dev/shm", ns=(0, 0))
    paths = do(directory)
    return len({path for path in paths if "/dev/shm" in path}), os.stat("/dev/shm").st_mtime_ns != 0


def share_with_itself(directory):
    """Merge a space; return the paths of its object, and of the pool."""
    with (
        ksmemu.Ksmd(directory, **FAST) as ksmd,
        ksmemu.AddressSpace(PAGE * NR_PAGES, instance=directory) as space,
    ):
        start = space.mmap(space.size)
        space.madvise_all(ksmemu.MADV_MERGEABLE)
        space.write(start, crew.content(1) * (NR_PAGES - 1))
        wait_until(lambda: ksmd.read("pages_sharing") == NR_PAGES - 2, what="merging")
        return [mapping.path for mapping in procmaps.mappings("self", start, start + space.size)]


def make_object_by_name(directory):
    named = Path("/dev/shm/named")
    named.touch()
    named.unlink()
    return []

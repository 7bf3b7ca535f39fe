"""Renewal: a private copy that is equal to its frame shows the frame again, and any other is left alone."""

import contextlib
import errno
import itertools
import mmap
from mmap import PROT_READ, PROT_WRITE

import pytest

from ksmemu import _core
from tests.core.test_agent import settle, shown
from tests.support.children import in_child
from tests.support.joined import SPACE, ZERO, joined
from tests.support.pages import ZEROS, content
from tests.support.processes import Worker
from tests.support.procmaps import PAGE

MOST_MAPPINGS = 1 << 18


def merge(space, pages, frame=20):
    settle(space, pages, frame)
    assert set(space.merge((pages[0], frame, len(pages))).values()) == {0}


def rewrite(space, pages):
    """Break the pages by writing what they hold."""
    for page in pages:
        space.write(page, space.read(page))
    assert set(space.broken(pages[0], pages[-1] + 1)) >= set(pages)


@in_child
def test_an_equal_copy_shows_the_frame_again_and_is_given_back():
    with joined() as space:
        merge(space, range(3, 10))
        rewrite(space, range(4, 9))
        assert space.renew((4, 21, 5)) == dict.fromkeys(range(4, 9), 0)
        assert space.broken(3, 10) == []
        assert shown(space, 3, 7) == [("rw-p", 20, 7)]
        assert [space.read(page) for page in range(3, 10)] == [content(n) for n in range(3, 10)]
        assert space.blocks_bytes() == 0


@in_child
def test_a_copy_that_differs_is_left_alone_and_may_be_written():
    with joined() as space:
        merge(space, [7])
        space.write(7, b"mine")
        assert space.renew((7, 20, 1)) == {7: errno.EAGAIN}
        assert space.broken(7, 8) == [7]
        assert space.read(7) == b"mine" + content(7)[4:]
        space.write(7, b"more")  # would sleep for ever on a page that is frozen
        assert space.rehome((7, 1)) == {7: 0}
        assert space.object_holds(7) == b"more" + content(7)[4:]


@in_child
def test_in_a_run_each_page_is_judged_by_itself():
    with joined() as space:
        merge(space, range(3, 14))
        rewrite(space, range(3, 14))
        for page in (3, 6, 7, 12):
            space.write(page, b"mine")
        differ = dict.fromkeys((3, 6, 7, 12), errno.EAGAIN)
        assert space.renew((3, 20, 11)) == dict.fromkeys(range(3, 14), 0) | differ
        assert space.broken(3, 14) == [3, 6, 7, 12]
        for page in range(3, 14):
            assert space.read(page)[4:] == content(page)[4:]
            assert space.read(page)[:4] == (b"mine" if page in differ else content(page)[:4])


@in_child
def test_a_renewed_page_is_copied_anew_when_it_is_written():
    with joined() as space:
        merge(space, [7])
        rewrite(space, [7])
        space.renew((7, 20, 1))
        space.write(7, b"later")
        assert space.read(7) == b"later" + content(7)[5:]
        assert space.pool_holds(20) == content(7)
        assert space.renew((7, 20, 1)) == {7: errno.EAGAIN}


@in_child
def test_a_copy_of_zeros_shows_the_zero_page_again():
    with joined() as space:
        for page in range(5, 12):
            space.write(page, ZEROS)
        space.merge((5, ZERO, 7))
        rewrite(space, range(5, 12))
        space.write(9, b"x")
        assert space.renew((5, ZERO, 7)) == dict.fromkeys(range(5, 12), 0) | {9: errno.EAGAIN}
        assert space.broken(5, 12) == [9]
        assert space.read(9)[:1] == b"x"
        assert space.read(8) == space.read(10) == ZEROS


@in_child
def test_a_copy_may_show_another_equal_frame():
    """As the rungs of a ladder."""
    with joined() as space:
        merge(space, [7])
        space.fill_frame(33, content(7))
        rewrite(space, [7])
        assert space.renew((7, 33, 1)) == {7: 0}
        assert shown(space, 7) == [("rw-p", 33, 1)]


@in_child
def test_a_discarded_copy_is_renewed():
    with joined() as space:
        merge(space, [7])
        space.write(7, b"gone")
        space.discard(7)
        assert space.renew((7, 20, 1)) == {7: 0}
        assert space.read(7) == content(7)


@in_child
def test_runs_longer_than_a_window_are_renewed():
    nr = 2 * _core.WINDOW_PAGES + 7
    with joined(nr_pages=nr, nr_frames=nr) as space:
        merge(space, range(nr), frame=0)
        rewrite(space, range(nr))
        assert space.renew((0, 0, nr)) == dict.fromkeys(range(nr), 0)
        assert space.broken(0, nr) == []
        assert shown(space, 0, nr) == [("rw-p", 0, nr)]


@in_child
def test_copies_that_lie_apart_are_renewed():
    """More than a window of them, in more than one stretch that is frozen at once."""
    nr = 2 * _core.RENEW_PAGES + 7
    with joined(nr_pages=nr, nr_frames=nr) as space:
        merge(space, range(nr), frame=0)
        pages = range(0, nr, 3)
        rewrite(space, pages)
        space.write(6, b"mine")
        renewed = space.renew(*((page, page, 1) for page in pages))
        assert renewed == dict.fromkeys(pages, 0) | {6: errno.EAGAIN}
        assert space.broken(0, nr) == [6]
        assert all(space.read(page) == content(page) for page in range(nr) if page != 6)
        assert space.read(6) == b"mine" + content(6)[4:]


@in_child
def test_none_of_the_copies_that_lie_apart_is_equal():
    with joined() as space:
        merge(space, range(3, 10))
        for page in (4, 8):
            space.write(page, b"mine")
        assert space.renew((4, 21, 1), (8, 25, 1)) == dict.fromkeys((4, 8), errno.EAGAIN)
        assert space.broken(3, 10) == [4, 8]


@in_child
def test_writes_to_a_page_between_copies_are_recorded_as_before():
    with joined() as space:
        settle(space, range(3, 10), 20)
        assert set(space.merge((3, 20, 3), (7, 24, 3)).values()) == {0}
        rewrite(space, [4, 8])
        space.harvest()
        assert space.renew((4, 21, 1), (8, 25, 1)) == {4: 0, 8: 0}
        assert space.broken(3, 6) == space.broken(7, 10) == []
        space.write(6, b"x")
        assert space.harvest() == [6]


def renew_where_another_frame_lies_under_it(_):
    """As a false ksmd could order; return whether the page keeps its bytes."""
    with joined() as space:
        merge(space, range(3, 10))
        space.fill_frame(33, content(11))
        rewrite(space, [4])
        space.write(8, content(11))
        assert space.renew((4, 21, 1), (8, 33, 1)) == {4: 0, 8: 0}
        assert space.read(4) == content(4)
        return space.read(8) == content(11)


def test_a_copy_is_dropped_only_over_the_frame_that_it_equals():
    with Worker() as worker:
        assert worker.call(renew_where_another_frame_lies_under_it)


def test_a_drop_over_another_frame_would_be_noticed_without():
    with Worker(break_step="over") as worker:
        assert not worker.call(renew_where_another_frame_lies_under_it)


@in_child
def test_what_lies_between_may_be_protected():
    with joined() as space:
        merge(space, range(3, 10))
        rewrite(space, [4, 7])
        space.protect(5, 6, PROT_READ)
        assert space.renew((4, 21, 1), (7, 24, 1)) == {4: 0, 7: 0}
        assert space.broken(3, 10) == []
        assert [perms for perms, _, _ in shown(space, 3, 7)] == ["rw-p", "r--p", "rw-p"]


@in_child
def test_what_lies_between_may_be_mergeable_no_more():
    with joined() as space:
        merge(space, range(3, 10))
        rewrite(space, [4, 7])
        space.agent.withdraw(SPACE, space.ranges((0, 5), (6, 23)))
        space.epoch += 1
        assert space.renew((4, 21, 1), (7, 24, 1)) == {4: 0, 7: 0}
        assert space.broken(3, 10) == []


@in_child
def test_copies_may_lie_further_apart_than_a_freeze_reaches():
    nr = _core.RENEW_PAGES + 7
    with joined(nr_pages=nr, nr_frames=nr) as space:
        merge(space, range(nr), frame=0)
        rewrite(space, [3, nr - 2])
        assert space.renew((3, 3, 1), (nr - 2, nr - 2, 1)) == {3: 0, nr - 2: 0}
        assert space.broken(0, nr) == []


@in_child
def test_a_page_that_may_not_be_read_is_sent_home_and_keeps_its_bytes():
    with joined() as space:
        merge(space, range(3, 8))
        rewrite(space, range(3, 8))
        space.protect(5, 7, 0)
        assert space.renew((3, 20, 5)) == {3: 0, 4: 0, 5: errno.EAGAIN, 6: errno.EAGAIN, 7: 0}
        assert space.rehome((5, 2)) == {5: 0, 6: 0}
        assert [space.object_holds(page) for page in (5, 6)] == [content(5), content(6)]


@in_child
def test_a_page_that_may_only_be_read_keeps_that():
    with joined() as space:
        merge(space, range(3, 8))
        rewrite(space, range(3, 8))
        space.protect(4, 7, PROT_READ)
        assert space.renew((3, 20, 5)) == dict.fromkeys(range(3, 8), 0)
        assert space.broken(3, 8) == []
        assert [perms for perms, _, _ in shown(space, 3, 5)] == ["rw-p", "r--p", "rw-p"]


def fill_up():
    """Make mappings until the process may have no more (vm.max_map_count)."""
    made, kinds = [], itertools.cycle((PROT_READ, PROT_READ | PROT_WRITE))
    with contextlib.suppress(OSError):
        while len(made) < MOST_MAPPINGS:
            made.append(mmap.mmap(-1, PAGE, prot=next(kinds)))
    assert len(made) < MOST_MAPPINGS, "vm.max_map_count is too high to come near it in a test"
    return made


@in_child
def test_without_a_mapping_left_a_copy_stays_and_may_be_written(the_machine_stays_as_it_is):
    with joined() as space:
        merge(space, range(3, 14))
        rewrite(space, [8])
        made = fill_up()
        refused = 0
        while (error := space.renew((8, 25, 1))[8]) == errno.ENOMEM:
            refused += 1
            assert space.read(8) == content(8)
            space.write(8, content(8))  # would sleep for ever on a page that is frozen
            made.pop().close()
        assert error == 0
        assert refused > 0
        assert space.read(8) == content(8)
        assert space.broken(3, 14) == []


@pytest.mark.parametrize("tracks", [True, False])
@in_child
def test_after_a_renewal_pages_come_home_and_are_tracked_as_ever(tracks):
    with joined(tracks=tracks) as space:
        merge(space, [7, 8])
        rewrite(space, [7])
        assert space.renew((7, 20, 1)) == {7: 0}
        assert space.rehome((7, 2)) == {7: 0, 8: 0}
        assert space.blocks_bytes() == 2 * PAGE
        space.harvest()
        space.write(8, b"x")
        assert space.object_holds(8)[:1] == b"x"
        assert not tracks or space.harvest() == [8]

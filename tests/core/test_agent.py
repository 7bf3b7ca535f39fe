"""The agent, driven over its socket by the test: what it does, what it refuses, what it survives."""

import errno
import os

import numpy as np
import pytest

from ksmemu import _core, wire
from ksmemu.wire import ORDER_MAX_PAGES, OrderKind, ReportKind
from tests.support import procmaps
from tests.support.children import in_child
from tests.support.joined import SPACE, ZERO, joined
from tests.support.pages import ZEROS, content
from tests.support.procmaps import PAGE
from tests.support.waiting import wait_until


def shown(space, first, nr=1):
    """Return what is mapped at some pages: (permissions, page of the object, pages) of each mapping."""
    maps = procmaps.mappings("self", space.address(first), space.address(first + nr))
    return [(mapping.perms, mapping.offset // PAGE, mapping.pages) for mapping in maps]


def settle(space, pages, frame=None):
    """Write pages and, from `frame` on, frames of the same content."""
    for index, page in enumerate(pages):
        space.write(page, content(page))
        if frame is not None:
            space.fill_frame(frame + index, content(page))


# ---- merge -----------------------------------------------------------------------------------------


@in_child
def test_equal_pages_show_the_frames_and_are_given_back():
    with joined() as space:
        settle(space, range(3, 10), frame=20)
        assert space.merge((3, 20, 7)) == dict.fromkeys(range(3, 10), 0)
        assert shown(space, 3, 7) == [("rw-p", 20, 7)]
        assert [space.read(page) for page in range(3, 10)] == [content(n) for n in range(3, 10)]
        assert space.blocks_bytes() == 0


@in_child
def test_a_page_that_differs_stays_as_it_is():
    with joined() as space:
        settle(space, range(3, 10), frame=20)
        space.write(6, b"other")
        errors = space.merge((3, 20, 7))
        assert errors == dict.fromkeys(range(3, 10), 0) | {6: errno.EAGAIN}
        assert space.read(6)[:5] == b"other"
        assert shown(space, 6)[0][0] == "rw-s"
        assert space.blocks_bytes() == PAGE
        space.write(6, b"again")
        assert space.object_holds(6)[:5] == b"again"


@in_child
def test_a_page_that_was_refused_counts_as_written():
    with joined() as space:
        settle(space, [7])
        space.harvest()
        assert space.merge((7, 3, 1)) == {7: errno.EAGAIN}
        assert 7 in space.harvest()
        assert space.harvest() == []


@in_child
def test_a_write_to_a_merged_page_leaves_the_frame_alone():
    with joined() as space:
        settle(space, range(3, 6), frame=20)
        space.merge((3, 20, 3))
        space.write(4, b"mine")
        assert space.read(4) == b"mine" + content(4)[4:]
        assert space.read(3) == content(3)
        assert space.pool_holds(21) == content(4)
        assert space.blocks_bytes() == 0


@in_child
def test_runs_longer_than_a_window_are_one_mapping():
    nr = 2 * _core.WINDOW_PAGES + 7
    with joined(nr_pages=nr, nr_frames=nr) as space:
        settle(space, range(nr), frame=0)
        assert set(space.merge((0, 0, nr)).values()) == {0}
        assert shown(space, 0, nr) == [("rw-p", 0, nr)]
        assert space.blocks_bytes() == 0


@in_child
def test_joined_runs_leave_the_pages_between_alone():
    with joined() as space:
        settle(space, range(3, 14))
        for frame, page in ((20, 3), (30, 7), (40, 12)):
            space.fill_frame(frame, content(page))
        assert space.merge((3, 20, 1), (7, 30, 1, 1), (12, 40, 1, 1)) == {3: 0, 7: 0, 12: 0}
        kinds = [perms for perms, _, _ in shown(space, 3, 11)]
        assert kinds == ["rw-p", "rw-s", "rw-p", "rw-s", "rw-p", "rw-s"]
        assert [space.read(page) for page in range(3, 14)] == [content(n) for n in range(3, 14)]
        space.write(5, b"between")
        assert 5 in space.harvest()
        assert space.object_holds(5)[:7] == b"between"


@in_child
def test_pages_between_joined_runs_are_named_by_the_next_harvest():
    with joined() as space:
        settle(space, range(3, 8))
        space.fill_frame(20, content(3))
        space.fill_frame(30, content(7))
        space.harvest()
        space.merge((3, 20, 1), (7, 30, 1, 1))
        assert {4, 5, 6} <= set(space.harvest())
        assert space.harvest() == []


@in_child
def test_joined_runs_share_a_freeze_only_if_it_can_hold_them():
    nr = 2 * _core.WINDOW_PAGES + 7
    runs = [(3, 20, 1), (_core.WINDOW_PAGES + 2, 21, 1, 1), (nr - 1, 22, 1, 1)]
    with joined(nr_pages=nr) as space:
        for page, frame, *_ in runs:
            settle(space, [page], frame)
        assert space.merge(*runs) == {page: 0 for page, *_ in runs}
        assert [shown(space, page)[0][:2] for page, *_ in runs] == [("rw-p", frame) for _, frame, *_ in runs]


@pytest.mark.parametrize("policy", [os.SCHED_BATCH, os.SCHED_IDLE])
@in_child
def test_an_agent_keeps_the_policy_of_who_creates_it(policy):
    os.sched_setscheduler(0, policy, os.sched_param(0))
    with joined() as space:
        settle(space, [3], frame=20)
        assert space.merge((3, 20, 1)) == {3: 0}
        threads = [int(name) for name in os.listdir("/proc/self/task")]
        assert len(threads) > 1
        assert {os.sched_getscheduler(thread) for thread in threads} == {policy}


@in_child
def test_zeros_show_the_zero_page_in_one_mapping():
    with joined() as space:
        for page in range(5, 16):
            space.write(page, ZEROS)
        space.write(9, b"x")
        errors = space.merge((5, ZERO, 11))
        assert errors == dict.fromkeys(range(5, 16), 0) | {9: errno.EAGAIN}
        assert [pages for perms, _, pages in shown(space, 5, 11) if perms == "rw-p"] == [4, 6]
        assert space.read(9)[:1] == b"x"
        assert space.read(12) == ZEROS
        assert space.blocks_bytes() == PAGE


@in_child
def test_without_a_track_userfaultfd_merging_works_the_same():
    with joined(tracks=False) as space:
        settle(space, range(3, 10), frame=20)
        space.write(6, b"other")
        errors = space.merge((3, 20, 7))
        assert errors == dict.fromkeys(range(3, 10), 0) | {6: errno.EAGAIN}
        space.write(4, b"mine")
        assert set(space.rehome((3, 7)).values()) == {0}
        assert space.object_holds(4)[:4] == b"mine"


# ---- rehome ----------------------------------------------------------------------------------------


@in_child
def test_rehomed_pages_are_own_with_the_bytes_that_were_shown():
    with joined() as space:
        settle(space, range(3, 10), frame=20)
        space.merge((3, 20, 7))
        space.write(5, b"mine")
        assert space.rehome((3, 7)) == dict.fromkeys(range(3, 10), 0)
        assert [perms for perms, _, _ in shown(space, 3, 7)] == ["rw-s"]
        assert space.object_holds(5) == b"mine" + content(5)[4:]
        assert space.object_holds(9) == content(9)
        space.write(9, b"later")
        assert space.object_holds(9)[:5] == b"later"


@in_child
def test_a_discarded_copy_is_rehomed_with_the_bytes_of_the_frame():
    with joined() as space:
        settle(space, [7], frame=20)
        space.merge((7, 20, 1))
        space.write(7, b"gone")
        space.discard(7)
        assert space.read(7) == content(7)
        space.rehome((7, 1))
        assert space.object_holds(7) == content(7)


@in_child
def test_zeros_are_rehomed_too():
    with joined() as space:
        space.write(5, ZEROS)
        space.write(6, ZEROS)
        space.merge((5, ZERO, 2))
        space.write(6, b"x")
        assert space.rehome((5, 2)) == {5: 0, 6: 0}
        assert space.object_holds(5) == ZEROS
        assert space.object_holds(6)[:1] == b"x"


@in_child
def test_rehoming_a_page_that_is_own_changes_nothing():
    with joined() as space:
        settle(space, [7, 8])
        assert space.rehome((7, 2)) == {7: 0, 8: 0}
        assert space.read(8) == space.object_holds(8) == content(8)


@in_child
def test_a_rehomed_page_is_quiet_until_it_is_written():
    with joined() as space:
        settle(space, [7], frame=20)
        space.merge((7, 20, 1))
        space.rehome((7, 1))
        space.harvest()
        assert space.harvest() == []
        space.write(7, b"x")
        assert space.harvest() == [7]


@in_child
def test_the_worker_can_rehome_by_itself():
    nr = _core.WINDOW_PAGES + 13
    with joined(nr_pages=nr, nr_frames=nr) as space:
        settle(space, range(nr), frame=0)
        space.merge((0, 0, nr))
        space.agent.rehome(SPACE, space.address(0), space.address(nr))
        assert space.blocks_bytes() == nr * PAGE
        assert all(space.object_holds(page) == content(page) for page in range(nr))


# ---- refusals --------------------------------------------------------------------------------------


@in_child
def test_a_stale_epoch_is_refused():
    with joined() as space:
        settle(space, [7], frame=20)
        space.agent.withdraw(SPACE, space.ranges((0, 23)))
        assert space.merge((7, 20, 1)) == {7: errno.ESTALE}
        assert space.renew((7, 20, 1)) == space.rehome((7, 1)) == {7: errno.ESTALE}
        assert space.merge((7, 20, 1), epoch=1) == {7: 0}


@in_child
def test_an_order_from_before_the_end_of_a_withdrawal_is_stale_after_new_advice():
    """ksmd may learn the epoch of a withdrawal, by a refusal, before it hears that the pages are home."""
    with joined() as space:
        settle(space, [7, 8], frame=20)
        space.merge((7, 20, 1))
        space.agent.withdraw(SPACE, b"")
        space.agent.rehome(SPACE, space.address(7), space.address(8))
        assert space.renew((7, 20, 1), epoch=1) == {7: errno.EINVAL}
        space.agent.unadvised(SPACE, space.address(0), space.address(23))
        space.report()
        space.advise(adopt=False)
        for order_of in (space.merge, space.renew):
            assert order_of((7, 20, 2), epoch=1) == {7: errno.ESTALE, 8: errno.ESTALE}
        assert shown(space, 7, 2) == [("rw-s", 7, 2)]
        assert space.merge((7, 20, 2), epoch=2) == {7: 0, 8: 0}


@in_child
def test_pages_outside_the_advice_are_refused():
    with joined(advised=False) as space:
        space.map()
        settle(space, range(23), frame=20)
        space.advise(5, 11)
        for page, nr in ((4, 1), (4, 3), (10, 2), (11, 1), (22, 1), (22, 2), (23, 1), (1 << 40, 1)):
            assert set(space.merge((page, 25, nr)).values()) == {errno.EINVAL}, page
            assert set(space.renew((page, 25, nr)).values()) == {errno.EINVAL}, page
            assert set(space.rehome((page, nr)).values()) == {errno.EINVAL}, page
        assert space.read(4) == content(4)
        assert space.merge((5, 25, 6)) == dict.fromkeys(range(5, 11), 0)


@in_child
def test_frames_outside_the_pool_are_refused():
    with joined(nr_frames=61) as space:
        settle(space, range(3, 6))
        for frame in (61, 59, 60, 1 << 40, ZERO - 1):
            errors = space.merge((3, frame, 3))
            assert errors == dict.fromkeys((3, 4, 5), errno.EINVAL), frame
            assert space.renew((3, frame, 3)) == errors, frame
        assert [space.read(page) for page in (3, 4, 5)] == [content(3), content(4), content(5)]


@in_child
def test_an_unknown_space_is_refused():
    with joined() as space:
        settle(space, [7], frame=20)
        assert space.merge((7, 20, 1), space=SPACE + 1) == {7: errno.ENOENT}
        assert space.renew((7, 20, 1), space=SPACE + 1) == {7: errno.ENOENT}
        assert space.rehome((7, 1), space=SPACE + 1) == {7: errno.ENOENT}
        assert space.agent.is_alive()


def order(kind, runs, nr_runs=None):
    columns = np.array([(*run, 0) for run in runs], dtype=wire.RUN)
    head = wire.ORDER.pack(kind, SPACE, 97, 0, len(runs) if nr_runs is None else nr_runs)
    return head + columns.tobytes()


GARBAGE = {
    "nothing like an order": b"hello",
    "a head that is cut": order(OrderKind.MERGE, [])[:-1],
    "no runs": order(OrderKind.MERGE, []),
    "fewer runs than it says": order(OrderKind.MERGE, [(7, 20, 1)], nr_runs=2),
    "more runs than it says": order(OrderKind.MERGE, [(7, 20, 1), (8, 21, 1)], nr_runs=1),
    "a run that is cut": order(OrderKind.MERGE, [(7, 20, 1)])[:-3],
    "a number of runs that wraps": order(OrderKind.MERGE, [(7, 20, 1)], nr_runs=2**32 - 1),
    "an unknown kind": order(4, [(7, 20, 1)]),
    "a run of no pages": order(OrderKind.MERGE, [(7, 20, 0)]),
    "no page to renew": order(OrderKind.RENEW, [(7, 20, 0)]),
    "too many pages to renew": order(OrderKind.RENEW, [(0, 0, ORDER_MAX_PAGES + 1)]),
    "pages that descend": order(OrderKind.MERGE, [(8, 20, 1), (7, 21, 1)]),
    "runs that overlap": order(OrderKind.MERGE, [(7, 20, 3), (9, 30, 1)]),
    "too many pages": order(OrderKind.MERGE, [(0, 0, ORDER_MAX_PAGES), (5000, 0, 1)]),
    "a run that wraps": order(OrderKind.MERGE, [(7, 20, 2**32 - 1)]),
    "an address that wraps": order(OrderKind.REHOME, [(2**64 - 1, ZERO, 1)]),
    "too long a message": bytes(1 << 17),
}


@pytest.mark.parametrize("what", GARBAGE)
@in_child
def test_garbage_ends_the_connection_and_touches_nothing(what):
    with joined() as space:
        settle(space, [7, 8, 9], frame=20)
        space.order.send(GARBAGE[what])
        with pytest.raises((EOFError, ConnectionResetError)):
            space.report()
        wait_until(lambda: not space.agent.is_alive())
        assert [space.read(page) for page in (7, 8, 9)] == [content(7), content(8), content(9)]
        space.write(7, b"still mine")
        assert space.object_holds(7)[:10] == b"still mine"


@in_child
def test_without_ksmd_what_is_merged_can_be_written_and_rehomed():
    with joined() as space:
        settle(space, [7, 8], frame=20)
        space.merge((7, 20, 2))
        space.order.close()
        wait_until(lambda: not space.agent.is_alive())
        space.write(8, b"alone")
        assert space.read(7) == content(7)
        space.agent.rehome(SPACE, space.address(7), space.address(9))
        assert space.object_holds(8) == b"alone" + content(8)[5:]


# ---- what the application does ---------------------------------------------------------------------


@in_child
def test_every_change_is_reported_with_its_pages_and_epoch():
    with joined(advised=False) as space:
        space.map()
        kind, _, _, epoch, _, spans = space.advise(3, 20)
        assert (kind, epoch, spans.tolist()) == (ReportKind.ADVISED, 0, [(3, 17, 0, 0)])

        space.agent.withdraw(SPACE, space.ranges((3, 10)))
        space.agent.unadvised(SPACE, space.address(10), space.address(20))
        kind, _, _, epoch, _, spans = space.report()
        assert (kind, epoch, spans.tolist()) == (ReportKind.UNADVISED, 2, [(10, 10, 0, 0)])

        space.agent.tell(SPACE, ReportKind.REFUSED, space.address(10), space.address(13), 0)
        kind, _, _, epoch, _, spans = space.report()
        assert (kind, epoch, spans.tolist()) == (ReportKind.REFUSED, 2, [(10, 3, 0, 0)])

        space.agent.unmap(SPACE, space.address(3), space.address(5), space.ranges((5, 10)))
        kind, _, _, epoch, _, spans = space.report()
        assert (kind, epoch, spans.tolist()) == (ReportKind.UNMAPPED, 3, [(3, 2, 0, 0)])

        space.remove()
        assert space.report()[0] is ReportKind.CLOSED


@in_child
def test_unmapped_pages_are_given_back_and_out_of_reach():
    with joined() as space:
        settle(space, range(23), frame=20)
        space.agent.unmap(SPACE, space.address(7), space.address(12), space.ranges((0, 7), (12, 23)))
        space.report()
        assert shown(space, 7, 5)[0][0] == "---p"
        assert space.blocks_bytes() == 18 * PAGE
        assert space.merge((7, 27, 1), epoch=1) == {7: errno.EINVAL}
        assert space.merge((12, 32, 1), epoch=1) == {12: 0}


@in_child
def test_a_space_that_is_removed_is_unknown_everywhere():
    with joined() as space:
        space.remove()
        for call in (
            lambda: space.agent.remove_space(SPACE),
            lambda: space.agent.rehome(SPACE, space.address(0), space.address(1)),
            lambda: space.agent.withdraw(SPACE, b""),
            lambda: space.protect(0, 1, 0),
            lambda: space.agent.unadvised(SPACE, space.address(0), space.address(1)),
            lambda: space.agent.tell(SPACE, ReportKind.REFUSED, space.address(0), space.address(1), 0),
            lambda: space.agent.remember(SPACE, b""),
            lambda: space.agent.unmap(SPACE, space.address(0), space.address(1), b""),
        ):
            with pytest.raises(FileNotFoundError):
                call()
        assert space.agent.advise(SPACE, space.address(0), space.address(1), False, b"") == (0, errno.ENOENT)


@in_child
def test_spaces_and_agents_come_and_go_in_any_order():
    with joined() as first, joined() as second:
        settle(first, [7], frame=20)
        start = _core.reserve(PAGE)
        first.agent.add_space(SPACE + 1, start, PAGE, 0, os.memfd_create("own"))
        first.remove()
        assert first.report()[:2] == (ReportKind.CLOSED, SPACE)
        first.agent.remove_space(SPACE + 1)
        assert first.report()[:2] == (ReportKind.CLOSED, SPACE + 1)
        first.agent.close()
        settle(second, [7], frame=20)
        assert second.merge((7, 20, 1)) == {7: 0}


@in_child
def test_a_closed_agent_refuses_everything_and_closes_twice():
    with joined() as space:
        space.agent.close()
        assert not space.agent.is_alive()
        with pytest.raises(ValueError, match="closed"):
            space.agent.rehome(SPACE, 0, 0)
        space.agent.close()


@in_child
def test_what_may_not_be_read_is_verified_all_the_same():
    with joined() as space:
        for page, number in ((3, 1), (4, 1), (6, 2)):
            space.write(page, content(number))
            space.fill_frame(page, content(1))
        space.protect(4, 7, 0)
        assert space.merge((3, 3, 2), (6, 6, 1)) == {3: 0, 4: 0, 6: errno.EAGAIN}
        assert shown(space, 3, 4) == [("rw-p", 3, 1), ("---p", 4, 1), ("---s", 5, 2)]
        assert space.rehome((3, 2)) == {3: 0, 4: 0}
        assert shown(space, 3, 4) == [("rw-s", 3, 1), ("---s", 4, 3)]
        assert space.object_holds(4) == content(1)

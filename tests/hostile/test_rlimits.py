"""A worker that can have no more descriptors, or addresses: a step works, or is refused and works later."""

import contextlib
import errno
import itertools
import resource

import pytest

from ksmemu import MADV_MERGEABLE, MADV_UNMERGEABLE
from tests.support import crew, procmaps
from tests.support.books import Member, check, recount
from tests.support.waiting import wait_until

NR_PAGES = 211
SLACK = 4 << 20
"""Addresses for the interpreter itself, far fewer than a pool takes."""


@pytest.fixture(scope="module")
def ksmd(lasting_ksmd):
    return lasting_ksmd


def _descriptors(pid):
    taken = procmaps.descriptors(pid)
    return next(fd for fd in itertools.count() if fd not in taken)


def _addresses(pid):
    return procmaps.status(pid)["VmSize"] + SLACK


LIMITS = {
    "descriptors": (resource.RLIMIT_NOFILE, _descriptors, errno.EMFILE),
    "addresses": (resource.RLIMIT_AS, _addresses, errno.ENOMEM),
}


@contextlib.contextmanager
def _no_more(what, worker):
    kind, taken, _ = LIMITS[what]
    worker.call(_do_nothing)
    before = resource.prlimit(worker.pid, kind)
    resource.prlimit(worker.pid, kind, (taken(worker.pid), before[1]))
    try:
        yield
    finally:
        resource.prlimit(worker.pid, kind, before)


def _do_nothing(_):
    """Whoever can do that has imported this module, which takes descriptors and addresses."""


def _advise(state, advice):
    try:
        state.space.madvise_all(advice)
    except OSError as error:
        return error.errno
    return 0


@pytest.mark.parametrize("what", LIMITS)
def test_a_worker_that_cannot_join_is_told_and_can_join_later(start_worker, what):
    worker = start_worker()
    worker.call(crew.open_ordinary_space, NR_PAGES)
    worker.call(crew.put, 0, range(NR_PAGES))
    before = procmaps.descriptors(worker.pid), procmaps.threads(worker.pid)
    with _no_more(what, worker):
        assert worker.call(_advise, MADV_MERGEABLE) == LIMITS[what][2]
    assert (procmaps.descriptors(worker.pid), procmaps.threads(worker.pid)) == before
    assert worker.call(_advise, MADV_MERGEABLE) == 0
    assert worker.call(crew.differing, 0, range(NR_PAGES)) == []


@pytest.mark.parametrize("what", LIMITS)
def test_pages_merge_and_break_and_come_home_without_room(ksmd, start_worker, what):
    twins = [Member.join(start_worker(), NR_PAGES) for _ in range(2)]
    written = [*range(1000, 1100), *range(100, NR_PAGES)]
    with contextlib.ExitStack() as limits:
        for twin in twins:
            limits.enter_context(_no_more(what, twin.worker))
            twin.call(crew.put, 0, range(NR_PAGES))
        wait_until(lambda: recount(twins).merged + recount(twins).zero == 2 * NR_PAGES, what="merging")
        twins[0].call(crew.put, 0, written[:100])
        wait_until(lambda: recount(twins).own >= 100, what="coming home")
        assert twins[0].call(crew.differing, 0, written) == []
        refused = twins[0].call(_advise, MADV_UNMERGEABLE)
        assert refused in (0, LIMITS[what][2])
    assert twins[0].call(crew.differing, 0, written) == []
    assert twins[0].call(_advise, MADV_UNMERGEABLE) == 0
    ksmd.wait_full_scans(3)
    check(ksmd, twins[1:])
    assert recount(twins[:1]).own == NR_PAGES
    for twin, numbers in zip(twins, (written, range(NR_PAGES)), strict=True):
        assert twin.call(crew.differing, 0, numbers) == []

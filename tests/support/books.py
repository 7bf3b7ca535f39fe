"""Compare ksmd's counters with what is really mapped (I2, I4), and sum up memory in use."""

import os
from dataclasses import dataclass

from ksmemu import wire
from ksmemu.control.figures import figures
from ksmemu.control.look import Look
from ksmemu.domain_key import Key
from ksmemu.instance import Instance
from tests.support import crew, fakes, procmaps
from tests.support.procmaps import PAGE
from tests.support.waiting import wait_until


@dataclass
class Member:
    """A worker with one space; `domain` as ksmd names it, if it is of this user."""

    worker: object
    space: tuple
    domain: str

    @classmethod
    def join(cls, worker, nr_pages, domain=None):
        key = Key(os.geteuid(), domain or "")
        return cls(worker, worker.call(crew.open_space, nr_pages, domain), str(key))

    def call(self, function, *args, **kwargs):
        return self.worker.call(function, *args, **kwargs)


def recount(members):
    return procmaps.recount([member.space for member in members])


def wait_at_rest(ksmd):
    """Return when several scans have changed no counter, and no order is under way."""
    ksmd.wait_full_scans(3)
    wait_until(lambda: is_at_rest(ksmd), what="rest")


def is_at_rest(ksmd):
    """Whether two scans change no counter, nothing is volatile, and nothing on its way home.

    A scan does not wait for a worker that is late, so that counters may stand still meanwhile.
    """
    before = _changing(ksmd)
    ksmd.wait_full_scans(2)
    is_still = before == _changing(ksmd) and ksmd.read("pages_volatile") == 0
    return is_still and not _nr_on_the_way_home(ksmd)


def _nr_on_the_way_home(ksmd):
    workers = figures(Instance.resolve(ksmd.directory))["workers"]
    return sum(space["looks"][Look.BROKEN] for worker in workers for space in worker["spaces"])


def _changing(ksmd):
    counters = {**ksmd.counters(), **ksmd.stats()}
    return {n: v for n, v in counters.items() if n not in {"full_scans", "pages_scanned"}}


def wait_written(ksmd):
    """Return when all files are as new as the newest: ksmd writes one by one, and answers after the last.

    It has closed its end by then: who counts its descriptors does not see this connection.
    """
    with fakes.connect(ksmd.directory) as control:
        wire.send_control(control, {"figures": wire.VERSION})
        while control.recv(wire.CONTROL_MAX_BYTES):
            pass


def check(ksmd, members, *, secure=False):
    """Assert that the books are what a recount finds; return the recount."""
    return check_spaces(ksmd, [member.space for member in members], secure=secure)


def check_spaces(ksmd, spaces, *, secure=False):
    """The same for advised spaces, each (pid, start, end)."""
    wait_written(ksmd)
    found = procmaps.recount(spaces)
    shared, sharing = ksmd.read("pages_shared"), ksmd.read("pages_sharing")
    if secure:  # a frame of one page is not counted as shared, its page as unique
        alone = ksmd.read("pages_unshared")
        single = sum(1 for pages in found.frames.values() if pages == 1)
        assert single <= alone <= single + found.zero, "frames of one page"
        assert not found.own, "pages without a frame"
        shared += alone
    with_frames = found.zero - ksmd.read("ksm_zero_pages")
    assert shared + sharing == found.merged + with_frames, "pages that refer to frames"
    assert ksmd.read("unmerge_bytes") == (found.merged + found.zero) * PAGE, "the worst case"
    # Pages of zeros have frames in the books and none in the pool: they show the kernel's zero page.
    # Many equal neighbours show rungs of a ladder, which the books do not count as frames.
    in_pool = ksmd.read("pool_bytes") // PAGE
    rungs = ksmd.read("ladder_frames")
    assert len(found.frames) <= in_pool, "frames that hold nothing are mapped"
    if not rungs:
        assert len(found.frames) == in_pool, "memory of the pool"
    if with_frames:
        assert in_pool - rungs < shared <= in_pool - rungs + with_frames, "frames"
    else:
        assert shared == in_pool - rungs, "frames"
    return found


def check_tracked(ksmd, members, found, *, secure=False):
    """Assert what else holds at rest, when all members are there to be asked."""
    check_tracked_bytes(ksmd, sum(member.call(crew.own_bytes) for member in members), found, secure=secure)


def check_tracked_bytes(ksmd, own_bytes, found, *, secure=False):
    """The same, when the own objects are known to hold so many bytes."""
    own = own_bytes // PAGE
    counters = ksmd.counters()
    tracked = ksmd.read("pages_tracked")
    assert tracked == own + found.merged + found.zero, "tracked pages"
    assert secure or counters["pages_unshared"] == own, "unique pages"
    assert counters["pages_volatile"] == 0
    zero = counters["ksm_zero_pages"]
    profit = (counters["pages_sharing"] + zero) * PAGE - (tracked - zero) * 64
    assert counters["general_profit"] == profit


def memory_in_use(ksmd, members):
    """Return what the kernel counts: own objects and pool by st_blocks, private memory by Pss_Anon."""
    own = sum(member.call(crew.own_bytes) for member in members)
    private = sum(
        procmaps.smaps_rollup(pid)["Pss_Anon"]
        for pid in [ksmd.pid, *(member.worker.pid for member in members)]
    )
    return own + ksmd.read("pool_bytes") + private

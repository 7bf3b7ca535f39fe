"""A ksmd told to merge, and asked when it has stopped: the counters move while a scan runs."""

from ksmemu.control.reasons import Reason
from tests.support import explained
from tests.support.waiting import wait_until

SETTLED = ("pages_shared", "pages_sharing", "pages_volatile", "pages_unshared")
_UNDER_WAY = {Reason.BEING_MERGED, Reason.REHOMING}


def merge(ksmd, scans=2):
    """Merge for some full scans, as the kernel's tests do, until all workers have obeyed; and go on.

    A scan does not wait for a worker that is late, as a stopped one is, or one without a processor.
    """
    ksmd.write("run", 1)
    ksmd.wait_full_scans(scans)
    wait_until(lambda: not _UNDER_WAY & explained.totals(ksmd).keys(), what="outcomes")


def settled(ksmd):
    """Stop, and return pages_shared, pages_sharing, pages_volatile and pages_unshared."""
    ksmd.write("run", 0)
    return tuple(ksmd.read(name) for name in SETTLED)


def shared_and_sharing(ksmd):
    return settled(ksmd)[:2]

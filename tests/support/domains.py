"""Security domains seen from outside: their counters, and what is really mapped."""

import contextlib

from ksmemu.control.counters import COUNTERS
from tests.support import books


def names(ksmd):
    """Return the domains whose files are all there."""
    folder = ksmd.directory / "stats/domains"
    with contextlib.suppress(FileNotFoundError):
        return {path.name for path in folder.iterdir() if (path / "pool_bytes").exists()}
    return set()


def read(ksmd, domain, counter):
    return int((ksmd.directory / "stats/domains" / domain / counter).read_text())


class Seen:
    """The counters of one domain, read as those of a ksmd are."""

    def __init__(self, ksmd, domain):
        self._ksmd, self._domain = ksmd, domain
        self.directory = ksmd.directory

    def read(self, counter):
        return read(self._ksmd, self._domain, counter)

    def counters(self):
        return {name: self.read(name) for name in COUNTERS if name != "full_scans"}


def check(ksmd, members, *, secure=False):
    """Assert that the books are what a recount finds (I4), in each domain and in sum; members by domain."""
    assert names(ksmd) == set(members)
    sums = dict.fromkeys(("pages_shared", "pages_sharing", "pool_bytes", "spaces", "workers"), 0)
    pools = []
    for domain, there in members.items():
        found = books.check(Seen(ksmd, domain), there, secure=secure)
        sums = {name: total + read(ksmd, domain, name) for name, total in sums.items()}
        pools += {inode for inode, _ in found.frames}
    assert sums == {name: ksmd.read(name) for name in sums}
    assert len(pools) == len(set(pools)), "a pool of two domains"

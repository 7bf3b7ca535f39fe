"""Security domains seen from outside: their counters, and what is really mapped."""

from tests.support import books
from tests.support.procmaps import PAGE


def names(ksmd):
    folder = ksmd.directory / "stats/domains"
    return {path.name for path in folder.iterdir()} if folder.exists() else set()


def read(ksmd, domain, counter):
    return int((ksmd.directory / "stats/domains" / domain / counter).read_text())


def check(ksmd, members):
    """Assert that the books are what a recount finds (I4), in each domain and in sum; members by domain."""
    assert names(ksmd) == set(members)
    sums = dict.fromkeys(("pages_shared", "pages_sharing", "pool_bytes", "spaces", "workers"), 0)
    pools = {}
    for domain, there in members.items():
        found = books.recount(there)
        counted = {name: read(ksmd, domain, name) for name in sums}
        assert counted["pages_shared"] + counted["pages_sharing"] == found.merged, domain
        assert counted["pages_shared"] == len(found.frames) == counted["pool_bytes"] // PAGE, domain
        sums = {name: sums[name] + counted[name] for name in sums}
        pools[domain] = {inode for inode, _ in found.frames}
    assert sums == {name: ksmd.read(name) for name in sums}
    every = [inode for inodes in pools.values() for inode in inodes]
    assert len(every) == len(set(every)), "a pool of two domains"

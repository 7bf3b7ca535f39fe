"""I4: at rest the counters equal a recount from the maps, the pagemap and st_blocks, whatever was before."""

import random

import pytest

import ksmemu
from tests.support import books, crew, domains
from tests.support.books import Member
from tests.support.waiting import wait_until

FAST = {"run": 1, "pages_to_scan": 1_000_003, "sleep_millisecs": 1}
NR_PAGES = 101
NR_CONTENTS = 113
NR_MEMBERS = 3
LABELS = ("", "", "other")
"""Of security domains: what is true of the sums is true in each."""
AT_REST = {"pages_shared", "pages_sharing", "pages_unshared", "pages_volatile", "ksm_zero_pages"}


class History:
    """A random sequence of what workers do, and a model of what they must read."""

    def __init__(self, seed, crew_of, ksmd):
        self.random = random.Random(seed)
        self.crew_of, self.ksmd = crew_of, ksmd
        self.members = []
        self.contents = {}
        for _ in range(NR_MEMBERS):
            self.join()

    def join(self):
        member = Member.join(self.crew_of(self.ksmd), NR_PAGES, self.random.choice(LABELS))
        self.members.append(member)
        self.contents[member.worker.pid] = [None] * NR_PAGES
        self.write(member, 0, NR_PAGES)

    def turn(self):
        actions = [self.write] * 7 + [self.withdraw] * 2 + [self.unmap, self.leave]
        first = self.random.randrange(NR_PAGES - 1)
        nr = self.random.randint(1, min(17, NR_PAGES - first))
        self.random.choice(actions)(self.random.choice(self.members), first, nr)
        if self.random.random() < 0.5:
            self.ksmd.wait_full_scans(self.random.randint(1, 3))

    def write(self, member, first, nr):
        model = self.contents[member.worker.pid]
        for page in range(first, first + nr):
            if model[page] != "unmapped":
                model[page] = self.random.randrange(NR_CONTENTS)
                member.call(crew.put, page, [model[page]])

    def withdraw(self, member, first, nr):
        """Unmerge, and advise again: the pages are new to ksmd."""
        if "unmapped" not in self.contents[member.worker.pid][first : first + nr]:
            member.call(crew.advise, first, nr, ksmemu.MADV_UNMERGEABLE)
            member.call(crew.advise, first, nr, ksmemu.MADV_MERGEABLE)

    def unmap(self, member, first, nr):
        member.call(crew.unmap, first, nr)
        self.contents[member.worker.pid][first : first + nr] = ["unmapped"] * nr

    def leave(self, member, *_):
        """A worker is killed, and another one comes."""
        member.worker.kill()
        self.members.remove(member)
        self.join()

    def check_domains(self, *, secure):
        by_domain = {}
        for member in self.members:
            by_domain.setdefault(member.domain, []).append(member)
        domains.check(self.ksmd, by_domain, secure=secure)
        for domain, members in by_domain.items():
            seen = domains.Seen(self.ksmd, domain)
            books.check_tracked(seen, members, books.recount(members), secure=secure)

    def check_contents(self):
        for member in self.members:
            model = self.contents[member.worker.pid]
            for page, number in enumerate(model):
                if number != "unmapped":
                    assert member.call(crew.differing, page, [number]) == []


def books_are_right(ksmd, history, nr_turns=19, nr_rounds=3, *, secure=False):
    for _ in range(nr_rounds):
        for _ in range(nr_turns):
            history.turn()
        books.wait_at_rest(ksmd)
        found = books.check(ksmd, history.members, secure=secure)
        books.check_tracked(ksmd, history.members, found, secure=secure)
        history.check_domains(secure=secure)
        history.check_contents()
    everything_is_zero_without_workers(ksmd, history.members)


def everything_is_zero_without_workers(ksmd, members):
    for member in members:
        member.worker.kill()
    wait_until(lambda: ksmd.read("workers") == 0, what="the end of the workers")
    books.wait_written(ksmd)
    counters = ksmd.counters()
    assert {counters[name] for name in [*AT_REST, "general_profit"]} == {0}
    assert ksmd.read("pool_bytes") == ksmd.read("pages_tracked") == 0


@pytest.fixture
def seed(show):
    seed = random.SystemRandom().randrange(1 << 32)
    show(f"history with seed {seed}")
    return seed


def test_the_books_are_right_after_any_history(ksmd, crew_of, seed):
    books_are_right(ksmd, History(seed, crew_of, ksmd))


def test_the_books_are_right_with_short_chains(start_ksmd, crew_of, seed):
    ksmd = start_ksmd(max_page_sharing=3, **FAST)
    books_are_right(ksmd, History(seed, crew_of, ksmd))


@pytest.mark.parametrize("limit", [3, 256])
def test_the_books_are_right_in_secure_mode(start_ksmd, crew_of, seed, limit):
    ksmd = start_ksmd(secure=True, max_page_sharing=limit, **FAST)
    books_are_right(ksmd, History(seed, crew_of, ksmd), nr_rounds=1, secure=True)


def test_it_would_be_noticed_if_releases_were_not_counted(start_ksmd, crew_of, seed):
    ksmd = start_ksmd(broken="count", module="tests.support.ksmd_main", **FAST)
    with pytest.raises(AssertionError, match=r"frames|refer"):
        books_are_right(ksmd, History(seed, crew_of, ksmd))

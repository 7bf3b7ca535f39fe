"""What a worker can learn of others from its own memory: where merged pages lie, and how long a write takes.

The one place in the suite where time is what is promised. Pages of both kinds lie and are written in random
order, so what disturbs the machine disturbs both; the middle one of three rounds counts.
"""

import os
import random
import statistics

import numpy as np
import pytest

from tests.support import crew, latency, procmaps
from tests.support.books import Member
from tests.support.procmaps import PAGE
from tests.support.waiting import wait_until

AT_ONCE = {"run": 1, "pages_to_scan": 1_000_003, "sleep_millisecs": 1}
NR_PAGES = 23


@pytest.fixture
def ksmd(start_ksmd):
    return start_ksmd(**AT_ONCE | {"run": 0})


@pytest.fixture
def two_of(crew_of):
    """Start two workers for a ksmd, with spaces of so many pages."""

    def start(ksmd, *sizes):
        return [Member.join(crew_of(ksmd), nr_pages) for nr_pages in sizes]

    return start


@pytest.fixture
def pair(ksmd, two_of):
    return two_of(ksmd, NR_PAGES + 1, NR_PAGES + 1)


# ---- where merged pages lie ------------------------------------------------------------------------


def fill(members, seed):
    for number, member in enumerate(members, 1):
        member.call(crew.fill_unique, 0, NR_PAGES, seed)
        member.call(crew.put, NR_PAGES, [seed * 100 + number])


def wait_merged(ksmd, nr=NR_PAGES):
    wait_until(lambda: ksmd.read("pages_sharing") == nr and not ksmd.read("pages_volatile"), what="merging")


def physical_pages(member):
    member.call(read_all)
    return procmaps.physical_pages(*member.space)


def read_all(state):
    state.space.read(state.start, state.space.size)


@pytest.mark.root
def test_merged_content_lies_in_physical_pages_that_no_worker_owned(ksmd, pair):
    """Else whoever merges could choose where the content of others is to lie (Flip Feng Shui)."""
    fill(pair, seed=1)
    owned = [physical_pages(member) for member in pair]
    assert len({*owned[0], *owned[1]}) == 2 * NR_PAGES + 2
    ksmd.write("run", 1)
    wait_merged(ksmd)
    now = [physical_pages(member) for member in pair]
    assert now[0][:NR_PAGES] == now[1][:NR_PAGES]
    assert not {*now[0][:NR_PAGES]} & {*owned[0], *owned[1]}
    # The control: what did not move is seen to be where it was.
    assert [pages[NR_PAGES] for pages in now] == [pages[NR_PAGES] for pages in owned]


def what_frames_hold(state):
    """Return the part of the pool that is in use, as any worker can read it."""
    pool = state.pool
    end = os.lseek(pool, 0, os.SEEK_END)
    return os.pread(pool, min(end, 4 * NR_PAGES * PAGE), 0)


def keep_pool(state):
    state.pool = crew.pool_descriptor(state.space)


def assert_freed_frames_hold_nothing(ksmd, pair):
    fill(pair, seed=1)
    ksmd.write("run", 1)
    wait_merged(ksmd)
    pair[0].call(keep_pool)
    secrets = pair[0].call(what_frames_hold)
    assert any(secrets)
    fill(pair, seed=2)
    wait_until(lambda: ksmd.read("pages_rehomed") == 2 * NR_PAGES, what="the way home")
    ksmd.write("run", 0)
    ksmd.write("run", 2)
    assert ksmd.read("pool_bytes") == 0, "st_blocks"
    assert not any(pair[0].call(what_frames_hold)), "what freed frames hold"


def test_a_freed_frame_is_punched_before_it_is_used_again(ksmd, pair):
    assert_freed_frames_hold_nothing(ksmd, pair)


def test_it_would_be_noticed_if_it_were_not(start_ksmd, two_of):
    ksmd = start_ksmd(broken="punch", module="tests.support.ksmd_main", **AT_ONCE | {"run": 0})
    with pytest.raises(AssertionError, match="st_blocks"):
        assert_freed_frames_hold_nothing(ksmd, two_of(ksmd, NR_PAGES + 1, NR_PAGES + 1))


# ---- how long a write takes ------------------------------------------------------------------------

NR_GUESSES = 499
APART = 5
SIZES = NR_GUESSES, 2 * NR_GUESSES * APART
NR_ROUNDS = 3
CHANCE = 1e-6


def put_guesses(state, pages, seed):
    view = state.space.ndarray((state.space.size // PAGE, PAGE // 8), np.uint64, state.start)
    view[pages] = np.random.default_rng(seed).integers(1 << 63, size=(len(pages), PAGE // 8), dtype=np.uint64)


def distance_of_a_round(ksmd, victim, spy, seed):
    """Return how far apart the times of first writes lie: to pages that the victim has too, and to others.

    The spy guesses 499 pages, and 499 that nobody has, each amid four pages of its own.
    """
    chance = random.Random(seed)
    places = [APART * number + APART // 2 for number in range(2 * NR_GUESSES)]
    guessed = sorted(chance.sample(places, NR_GUESSES))
    victim.call(crew.fill_unique, 0, NR_GUESSES, seed)
    ksmd.wait_full_scans(3)  # what nobody else has yet is treated in its way
    spy.call(crew.fill_unique, 0, APART * len(places), seed + 1)
    spy.call(put_guesses, guessed, seed)
    wait_merged(ksmd, NR_GUESSES)
    chance.shuffle(places)
    taken = dict(zip(places, spy.call(latency.first_writes, places), strict=True))
    right = [taken[place] for place in guessed]
    wrong = [taken[place] for place in set(places) - {*guessed}]
    return latency.distance(right, wrong)


def middle_distance(ksmd, members):
    seeds = range(100, 100 * (NR_ROUNDS + 1), 100)
    return statistics.median(distance_of_a_round(ksmd, *members, seed) for seed in seeds)


def test_in_secure_mode_the_time_of_a_first_write_does_not_tell_whether_a_guess_is_right(
    start_ksmd, two_of, show
):
    ksmd = start_ksmd(secure=True, **AT_ONCE)
    found = middle_distance(ksmd, two_of(ksmd, *SIZES))
    show(f"first writes in secure mode: Kolmogorov-Smirnov distance {found:.3f}")
    assert found < latency.critical_distance(NR_GUESSES, CHANCE)


def test_in_the_normal_mode_it_tells(start_ksmd, two_of, show):
    """The control."""
    ksmd = start_ksmd(**AT_ONCE)
    found = middle_distance(ksmd, two_of(ksmd, *SIZES))
    show(f"first writes in normal mode: Kolmogorov-Smirnov distance {found:.3f}")
    assert found > 0.5

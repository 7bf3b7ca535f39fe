"""Many equal pages under a limit: how many frames, chains and dups, and how they change."""

import pytest

from tests.support.expected import shared_and_sharing

pytestmark = pytest.mark.root
EACH = [
    (2, [2, 3, 7, 8]),
    (3, [2, 4, 7, 11]),
    (10, [9, 10, 11, 21, 97]),
    (256, [101, 256, 257, 513, 769, 1009]),
]


@pytest.mark.parametrize(("limit", "counts"), EACH)
def test_equal_pages_of_three_spaces(agree, limit, counts):
    def workload(engine):
        for nr in counts:
            shares = [nr // 3, nr // 3, nr - nr // 3 * 2]
            for share in shares:
                engine.member(share + 1).put(0, [1] * share)
            found = engine.rest()
            assert (found["pages_shared"], found["pages_sharing"]) == shared_and_sharing(nr, limit)
            engine.leave()

    agree(workload, max_page_sharing=limit)


@pytest.mark.parametrize("limit", [2, 3, 10])
def test_equal_pages_that_come_a_few_at_a_time(agree, limit):
    def workload(engine):
        one, other = engine.member(61), engine.member(61)
        at = 0
        for nr in (1, 2, 5, 1, 7, 11, 1):
            one.put(at, [1] * nr)
            other.put(at, [2, 1][: nr % 3] + [1] * (nr - nr % 3))
            at += nr
            engine.rest()

    agree(workload, max_page_sharing=limit)


@pytest.mark.parametrize("limit", [2, 3, 10])
def test_a_page_that_waits_takes_the_room_of_one_that_changed(agree, limit):
    def workload(engine):
        one = engine.member(61)
        one.put(0, [1] * (3 * limit + 1))
        engine.rest()
        one.put(0, [2])
        engine.rest()
        one.put(0, [1])
        engine.rest()

    agree(workload, max_page_sharing=limit)


@pytest.mark.parametrize("limit", [2, 3, 10])
def test_dups_that_empty(agree, limit):
    def workload(engine):
        one = engine.member(61)
        one.put(0, [1] * 5 * limit)
        engine.rest()
        for page in range(5 * limit - 1):
            one.put(page, [100 + page])
        engine.rest(chains=False)
        one.put(60, [1])  # looked for: the kernel prunes what it passes
        engine.rest()

    agree(workload, max_page_sharing=limit)


@pytest.mark.parametrize("limit", [2, 3])
def test_who_comes_first_in_the_scan_is_served_first(agree, limit):
    """Not who waits: the figures of the processes tell."""

    def workload(engine):
        one, other = engine.member(61), engine.member(61)
        other.put(0, [1])
        engine.rest()
        one.put(7, [1] * limit)
        engine.rest()

    agree(workload, max_page_sharing=limit)


@pytest.mark.parametrize("limit", [2, 3])
def test_a_page_that_is_written_with_what_it_held_takes_its_place_again(agree, limit):
    """Also before one that comes earlier in the scan: its checksum did not change."""

    def workload(engine):
        one, other = engine.member(61), engine.member(61)
        other.put(0, [1] * limit)
        engine.rest()
        other.put(0, [1])
        one.put(7, [1])
        engine.rest()
        other.discard(1, 1)
        other.put(1, [1])
        other.put(limit, [1])
        engine.rest()

    agree(workload, max_page_sharing=limit)


def test_the_limit_changes_after_everything_is_unmerged(agree):
    def workload(engine):
        engine.member(61).put(0, [1] * 53)
        engine.rest()
        engine.unmerge()
        engine.ksmd.write("max_page_sharing", 7)
        engine.rest()

    agree(workload, max_page_sharing=11)


@pytest.mark.parametrize("only_ours", [{"max_page_sharing": 10}, {"use_zero_pages": 1}])
def test_it_would_be_noticed_if_the_engines_differed(agree, only_ours):
    def workload(engine):
        engine.member(61).put(0, [0] * 22)
        engine.rest()

    agree(workload, only_ours, max_page_sharing=11)

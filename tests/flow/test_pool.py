"""Step 5: a frame lives as long as a page refers to it, and no longer."""

from tests.support.procmaps import PAGE
from tests.support.waiting import wait_until


def test_a_frame_is_released_with_its_last_page(stepped, memory):
    twins = [memory(stepped) for _ in range(2)]
    for twin in twins:
        twin.fill(range(23))
    stepped.scan(2)
    twins[0].fill(range(11), seed=1)
    stepped.scan()
    assert stepped.read("pool_bytes") == 23 * PAGE
    twins[1].fill(range(11), seed=2)
    stepped.scan()
    assert stepped.read("pool_bytes") == 12 * PAGE
    assert stepped.read("pages_shared") == 12


def test_the_pool_is_empty_when_nothing_is_merged(stepped, memory):
    twins = [memory(stepped) for _ in range(2)]
    for twin in twins:
        twin.fill(range(23))
    stepped.scan(2)
    for twin in twins:
        twin.space.close()
    wait_until(lambda: stepped.read("pool_bytes") == 0)
    wait_until(lambda: stepped.read("pages_shared") == stepped.read("pages_tracked") == 0)


def test_frames_are_used_again(stepped, memory):
    twins = [memory(stepped) for _ in range(2)]
    for turn in range(5):
        for twin in twins:
            twin.fill(range(23), seed=turn)
        stepped.scan(3)
        assert stepped.read("pages_shared") == 23
        assert stepped.read("pool_bytes") == 23 * PAGE

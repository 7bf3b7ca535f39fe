"""I1: a worker reads what it last wrote, always, whatever ksmd does and however it dies.

KSMEMU_RACE_SECONDS lengthens the race.
"""

import os
import random
import signal

import pytest

from tests.support import race
from tests.support.processes import Worker
from tests.support.waiting import run_for, wait_until

SECONDS = float(os.environ.get("KSMEMU_RACE_SECONDS", "20"))


@pytest.fixture
def seed():
    return random.SystemRandom().randrange(1 << 32)


@pytest.fixture
def fast_ksmd(start_ksmd):
    return start_ksmd(**race.FULL_SPEED)


def figures(seed, results, stats):
    names = ("merges", "verify_refusals", "pages_broken", "pages_rehomed", "pages_renewed", "freeze_max_ns")
    shown = results | {name: stats[name] for name in names}
    return f"race, seed {seed}: " + ", ".join(f"{value:,} {name}" for name, value in shown.items())


def test_writes_survive_while_pages_merge_under_them(fast_ksmd, seed, show):
    results = race.hold(fast_ksmd, SECONDS, seed)
    stats = fast_ksmd.stats()
    show(figures(seed, results, stats))
    assert results["writes"] > 0
    assert results["in system calls"] > 0
    assert stats["merges"] > 0
    assert stats["verify_refusals"] > 0
    assert stats["pages_rehomed"] > 0
    assert stats["pages_renewed"] > 0


def test_writes_survive_in_secure_mode(start_ksmd, seed, show):
    """Where frames are not mapped in their place, but moved there."""
    ksmd = start_ksmd(secure=True, **race.FULL_SPEED)
    results = race.hold(ksmd, 4.0, seed)
    stats = ksmd.stats()
    show(figures(seed, results, stats))
    assert min(stats["merges"], stats["verify_refusals"], stats["pages_rehomed"]) > 0


def test_writes_survive_renewals_and_nothing_else(seed, show):
    with Worker() as worker:
        results = worker.call(race.run_renewing, seed, 5.0)
    failures = results.pop("failures")
    show(f"renewals alone, seed {seed}: " + ", ".join(f"{value:,} {name}" for name, value in results.items()))
    assert not failures
    assert results["writes"] > 0
    assert results["renewed"] > 0


@pytest.mark.parametrize("step", ["freeze", "verify"])
def test_a_loss_in_a_renewal_would_be_noticed_without(step, seed):
    with Worker(break_step=step) as worker:
        failures = worker.call(race.run_renewing, seed, 40.0)["failures"]
    assert any("bytes are lost" in failure for failure in failures)


def test_writes_survive_the_sudden_death_of_ksmd(start_ksmd, seed, show):
    total = 0
    for number in range(3):
        ksmd = start_ksmd(**race.FULL_SPEED)

        def kill(ksmd=ksmd):
            wait_until(lambda: ksmd.read("workers") == 2, what="two racers")
            wait_until(lambda: ksmd.read("pages_rehomed") > 997, what="a race in full swing")
            os.kill(ksmd.pid, signal.SIGKILL)

        total += race.hold(ksmd, 13.0, f"{seed}/{number}", meanwhile=kill)["writes"]
    show(f"ksmd killed 3 times, seed {seed}: {total:,} writes, none lost")


def test_writes_survive_unmerging_and_merging_again(fast_ksmd, seed, show):
    toggles = 0

    def toggle():
        nonlocal toggles
        for _ in run_for(4.0):
            fast_ksmd.write("run", 2)
            fast_ksmd.write("run", 1)
            goal = fast_ksmd.read("merges") + 97
            wait_until(lambda: fast_ksmd.read("merges") > goal, what="merging again")  # noqa: B023
            toggles += 1

    results = race.hold(fast_ksmd, 5.0, seed, meanwhile=toggle)
    show(f"unmerged {toggles} times, {figures(seed, results, fast_ksmd.stats())}")
    assert toggles > 0


def test_a_ksmd_of_this_user_loses_no_write(seed, show):
    with Worker() as manager:
        results = manager.call(race.hold_as_this_user, 5.0, seed)
    show(f"as uid {os.geteuid()}, {figures(seed, results, results)}")
    assert results["merges"] > 0
    assert results["pages_rehomed"] > 0


def test_a_refused_system_call_is_an_error_that_the_caller_sees(seed, show):
    """The writers check that a page then holds a beginning of the new bytes and the rest of the old.

    It takes luck to meet a page in the microseconds in which it is frozen; the time for it is bounded.
    """
    with Worker() as manager:
        kinds = [race.SystemCallWriter] * 5
        results = manager.call(race.hold_as_this_user, 6.0, seed, kinds)
    show(
        f"{results['writes']:,} system calls wrote, {results['refused']} more got EFAULT, "
        f"{results['short']} were short; userfaultfd is for user mode only: {results['is user mode']}"
    )
    if not results["is user mode"]:
        assert not results["refused"]


@pytest.mark.parametrize("step", ["freeze", "verify", "copy"])
def test_the_race_would_notice_a_loss_without(step, fast_ksmd, seed):
    with pytest.raises(AssertionError, match="bytes are lost"):
        race.hold(fast_ksmd, 20.0, seed, break_step=step)


def test_the_race_would_notice_a_writer_that_is_never_woken(fast_ksmd, seed):
    with pytest.raises(AssertionError, match=r"did not answer|sleeps on a page for ever"):
        race.hold(fast_ksmd, 5.0, seed, break_step="wake", grace=3.0)

"""I3: nothing outside ksmd can write a frame, whatever a worker does with what it was given.

Two things are outside this promise, because the kernel gives them to whoever has that power over ksmd itself
anyway: root opens every object for writing, and a process of the same user that changes the mode of the
pool's object could as well trace ksmd.
"""

import os

import pytest

from tests.support import attacks, books, crew
from tests.support.books import Member
from tests.support.waiting import wait_until

NR_PAGES = 61
CONTENTS = range(1, NR_PAGES + 1)
FAST = {"run": 1, "pages_to_scan": 1_000_003, "sleep_millisecs": 1}


def frames_withstand(ksmd, crew_of, attack):
    """Let one of two workers attack the frames that both show."""
    attacker, other = members = [Member.join(crew_of(ksmd), NR_PAGES) for _ in range(2)]
    for member in members:
        member.call(crew.put, 0, CONTENTS)
    wait_until(lambda: ksmd.read("pages_sharing") == NR_PAGES, what="merging")
    first = min(frame for _, frame in books.recount(members).frames)
    done = attacker.call(attack, first)
    assert other.call(crew.differing, 0, CONTENTS) == []
    assert attacker.call(crew.differing, 0, CONTENTS) == []
    assert not done, "the attack was not refused"


REFUSED = [
    attack
    for attack in attacks.ATTACKS
    if attack is not attacks.open_for_writing or os.geteuid() != 0  # root opens every object
]
CONTROLLED = [
    attack
    for attack in attacks.ATTACKS
    if attack is not attacks.open_for_writing  # which the object's mode refuses, not the descriptor
]


@pytest.mark.parametrize("attack", REFUSED, ids=lambda attack: attack.__name__)
def test_an_attack_is_refused_and_changes_nothing(attack, ksmd, crew_of):
    frames_withstand(ksmd, crew_of, attack)


@pytest.mark.parametrize("attack", CONTROLLED, ids=lambda attack: attack.__name__)
def test_it_would_be_noticed_if_workers_got_a_writable_pool(attack, start_ksmd, crew_of):
    ksmd = start_ksmd(broken="read-only", module="tests.support.ksmd_main", **FAST)
    with pytest.raises(AssertionError):
        frames_withstand(ksmd, crew_of, attack)

"""Random workloads, the same each time; KSMEMU_ORACLE_SEED=… and KSMEMU_ORACLE_EXAMPLES=… run others."""

import os

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

import ksmemu

pytestmark = pytest.mark.root
SEED = int(os.environ.get("KSMEMU_ORACLE_SEED", "2009"))
EXAMPLES = int(os.environ.get("KSMEMU_ORACLE_EXAMPLES", "61"))
NR_MEMBERS, NR_PAGES, NR_CONTENTS = 3, 23, 5

spans = st.tuples(st.integers(0, NR_PAGES - 1), st.integers(1, 11)).map(
    lambda span: (span[0], min(span[1], NR_PAGES - span[0]))
)
# A small number most of the time: equal pages are the point.
contents = st.one_of(st.integers(0, 2), st.integers(0, NR_CONTENTS))


@st.composite
def puts(draw):
    first, nr = draw(spans)
    return "put", first, draw(st.lists(contents, min_size=nr, max_size=nr))


steps = st.one_of(
    puts(),
    spans.flatmap(lambda span: contents.map(lambda number: ("put", span[0], [number] * span[1]))),
    st.builds(lambda span, value: ("put_byte", *span, 1777, value), spans, st.integers(0, 1)),
    spans.map(lambda span: ("discard", *span)),
    spans.map(lambda span: ("advise", *span, ksmemu.MADV_UNMERGEABLE)),
    spans.map(lambda span: ("advise", *span, ksmemu.MADV_MERGEABLE)),
)
acts = st.one_of(
    st.tuples(st.integers(0, NR_MEMBERS - 1), steps),
    st.sampled_from(["rest", "rest", "rest", "unmerge", "leave"]),
)
tunables = st.fixed_dictionaries(
    {"max_page_sharing": st.sampled_from([2, 3, 5, 256]), "use_zero_pages": st.integers(0, 1)}
)


def play(engine, chosen, script):
    """Carry a script out; return the figures of every rest."""
    for name, value in chosen.items():
        engine.ksmd.write(name, value)
    engine.notes.clear()
    members = [engine.member(NR_PAGES) for _ in range(NR_MEMBERS)]
    for act in script:
        obey(engine, members, act)
    engine.rest(chains=False)
    look_for_everything(engine)
    engine.rest()
    engine.leave()
    return list(engine.notes)


def obey(engine, members, act):
    if act == "rest":
        engine.rest(chains=False)
    elif act == "unmerge":
        engine.unmerge()
    elif act == "leave":  # one goes, and comes again
        members.pop(0).close()
        engine.rest(chains=False)
        members.append(engine.member(NR_PAGES))
    else:
        which, (name, *args) = act
        getattr(members[which], name)(*args)


def look_for_everything(engine):
    """Write each content once more: the kernel prunes a chain only when it searches it."""
    engine.member(NR_CONTENTS + 1).put(0, range(NR_CONTENTS + 1))


def test_random_workloads(engines):
    kernel, own = engines()

    @seed(SEED)
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(tunables, st.lists(acts, min_size=5, max_size=19))
    def agree(chosen, script):
        try:
            assert play(own, chosen, script) == play(kernel, chosen, script)
        finally:
            kernel.leave()
            own.leave()

    print(f"KSMEMU_ORACLE_SEED={SEED}")  # noqa: T201 - pytest shows it with a failure
    agree()

"""Both engines, steered alike: the kernel's KSM is the oracle."""

import os
from contextlib import ExitStack

import pytest

from ksmemu.bench.kernel_ksm import KSM, KernelKsm
from tests.support import anonymous
from tests.support.engines import Engine, OwnCrew

ALIKE = {
    "smart_scan": 0,
    "pages_to_scan": 1_000_003,
    "sleep_millisecs": 0,
    "max_page_sharing": 256,
    "merge_across_nodes": 1,
    "use_zero_pages": 0,
    "stable_node_chains_prune_millisecs": 0,
}


@pytest.fixture(autouse=True)
def the_kernel_can_be_asked(the_machine_may_be_changed):
    """Skip where there is nothing to compare with; in CI that is a failure."""
    lacks = "root, who alone steers it" if os.geteuid() else "" if KSM.is_dir() else "CONFIG_KSM"
    if lacks:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"the kernel's own KSM needs {lacks}")


@pytest.fixture
def engines(start_ksmd):
    """Start both: engines(use_zero_pages=1) returns the kernel's and ours; `only_ours` sets ours apart."""
    with ExitStack() as stack:

        def start(only_ours=None, **tunables):
            tunables = {**ALIKE, **tunables}
            theirs = stack.enter_context(KernelKsm(advisor_mode="none", **tunables))
            ours = start_ksmd(**{**tunables, **(only_ours or {})})
            pair = Engine(theirs, anonymous), Engine(ours, OwnCrew, proc=ours.directory / "proc")
            for engine in pair:
                stack.callback(engine.close)
            return pair

        yield start


@pytest.fixture
def agree(engines):
    """Run a workload on both and compare every note: agree(workload, use_zero_pages=1).

    With `only_ours` the tunables differ, and so must the notes.
    """

    def run(workload, only_ours=None, **tunables):
        notes = []
        for engine in engines(only_ours, **tunables):
            workload(engine)
            notes.append(engine.notes)
            engine.leave()
        kernel, own = notes
        assert kernel, "the workload noted nothing"
        if only_ours:
            assert own != kernel, "a difference goes unnoticed"
        else:
            assert own == kernel

    return run

"""Negative controls: a step taken out, in a test-only build, so that its guarantee's test must fail.

Steps of the C core are switched off in a second build of the core, which only the processes of a test load.
Steps of ksmd are replaced in the process of a test's ksmd. The product has no such switch. In the same way a
process gets the core whose calls can be made to fail.
"""

import os

from tests.support import cores

CORE_STEPS = {"ancestor", "freeze", "ours", "over", "verify", "wake", "rearm", "punch", "copy"}
FAULTS = "faults"
"""Not a step: the core of faults.py. A test run with a core of its own ($KSMEMU_CORE) has faults in that."""


def load(step):
    """Put the core of a step in the place of the real one, in this process, before ksmemu is imported."""
    if step == FAULTS:
        cores.load(os.environ.get("KSMEMU_CORE") or cores.with_faults())
    elif step in CORE_STEPS:
        source = cores.ROOT / "tests/support/breaks.c"
        cores.load(cores.build("breaks", source, flags=["-O2", "-DKSMEMU_BREAKS"]))

import pytest

from tests.support import breaks
from tests.support.processes import Worker


@pytest.fixture(scope="module")
def faulty():
    """A worker whose core can be made to fail (tests/support/faults.py)."""
    with Worker(break_step=breaks.FAULTS) as worker:
        yield worker

"""What the guarantees share: workers for any ksmd, and figures that are shown also when a test passes."""

import pytest

from tests.support.processes import Worker


@pytest.fixture
def crew_of():
    """Start workers: crew_of(ksmd), crew_of(ksmd, break_step)."""
    started = []

    def start(ksmd, break_step=None):
        started.append(Worker(ksmd.directory, break_step))
        return started[-1]

    yield start
    for worker in started:
        worker.kill()
        worker.close()


@pytest.fixture
def show(capsys):
    """Print a line of figures, whatever pytest captures."""

    def show(text):
        with capsys.disabled():
            print(f"\n    {text}", end="")  # noqa: T201 - the figures are the point

    return show

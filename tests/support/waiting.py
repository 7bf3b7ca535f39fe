"""Wait for conditions, never for time. The only place in the tests that sleeps."""

import time


def wait_until(condition, timeout=20.0, what="condition"):
    """Return the first true value of condition(); AssertionError after timeout seconds."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{what} did not come true in {timeout} s"
        time.sleep(0.002)
    return value


def run_for(seconds):
    """Yield until that time is over; for loads of a stated length."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        yield
        time.sleep(0.01)

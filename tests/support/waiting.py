"""Wait for conditions, never for time. The only place in the tests that sleeps."""

import contextlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor


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


@contextlib.contextmanager
def over_and_over(act):
    """Do something in a thread without a pause while the block runs; what it raises is raised here."""
    stopping = threading.Event()

    def run():
        while not stopping.is_set():
            act()

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(run)
        try:
            yield
        finally:
            stopping.set()
        running.result()

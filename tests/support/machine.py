"""What the machine has once: the kernel's own KSM, and vm.max_map_count. Several tests run at a time.

Who changes them waits until nobody looks, and who relies on them until nobody changes them. Only flock() is
used, on a file that everybody may read: it ends with its holder.
"""

import contextlib
import fcntl

MAX_MAP_COUNT = "/proc/sys/vm/max_map_count"


@contextlib.contextmanager
def _locked(how):
    with open(MAX_MAP_COUNT, encoding="ascii") as file:
        fcntl.flock(file, how)
        yield


def changed():
    """A context in which this test alone may change them."""
    return _locked(fcntl.LOCK_EX)


def unchanged():
    """A context in which no other test changes them."""
    return _locked(fcntl.LOCK_SH)

"""What a worker hands over as the own object of a space: it must be shared memory of the worker's user.

ksmd shows nobody what it reads there; but what a worker was merely let read is not its memory to merge.
"""

from __future__ import annotations

import fcntl
import os
import stat

from ksmemu.ksmd.domain import Domain
from ksmemu.wire import WireError


def check(domain: Domain, file: int, size: int) -> None:
    """Raise WireError unless a descriptor is of such an object, of at least so many bytes."""
    try:
        fcntl.fcntl(file, fcntl.F_GET_SEALS)  # shared memory alone has seals; no file system is asked
    except OSError:
        raise WireError("an own object that is no shared memory") from None
    found = os.fstat(file)
    if not stat.S_ISREG(found.st_mode) or found.st_size < size:
        raise WireError("an own object that is none")
    if found.st_uid != domain.key.uid:
        raise WireError(f"an own object of uid {found.st_uid}")

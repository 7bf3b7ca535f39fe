"""ksmemu: Kernel Samepage Merging in user space, on real memory."""

from ksmemu.control.ksmd import Ksmd, connect
from ksmemu.errors import (
    AlreadyServedError,
    ForeignInstanceError,
    KernelLacksError,
    KsmError,
    NotRunningError,
)
from ksmemu.mm import fork as _fork  # noqa: F401 - from now on forks divide the memory of spaces
from ksmemu.mm.address_space import MADV_MERGEABLE, MADV_UNMERGEABLE, AddressSpace
from ksmemu.mm.arrays import array, asarray, mergeable_arrays
from ksmemu.mm.madvise import madvise
from ksmemu.mm.prctl import (
    PR_GET_MEMORY_MERGE,
    PR_SET_MEMORY_MERGE,
    get_memory_merge,
    prctl,
    set_memory_merge,
)

MADV_SHAREABLE = MADV_MERGEABLE
MADV_UNSHAREABLE = MADV_UNMERGEABLE

__all__ = [
    "MADV_MERGEABLE",
    "MADV_SHAREABLE",
    "MADV_UNMERGEABLE",
    "MADV_UNSHAREABLE",
    "PR_GET_MEMORY_MERGE",
    "PR_SET_MEMORY_MERGE",
    "AddressSpace",
    "AlreadyServedError",
    "ForeignInstanceError",
    "KernelLacksError",
    "KsmError",
    "Ksmd",
    "NotRunningError",
    "array",
    "asarray",
    "connect",
    "get_memory_merge",
    "madvise",
    "mergeable_arrays",
    "prctl",
    "set_memory_merge",
]

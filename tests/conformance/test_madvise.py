"""LTP madvise01 and madvise02, for the two advices of KSM: with it both succeed, without it both are refused.

What KSM ignores (a shared file mapping) lies in no address space here: ENOMEM, as for what is not mapped. No
KSM is no ksmd: MADV_MERGEABLE is refused, and MADV_UNMERGEABLE has nothing to undo.
"""

import ctypes
import errno
import mmap
import tempfile

import ksmemu
from ksmemu import MADV_MERGEABLE, MADV_UNMERGEABLE
from tests.support.procmaps import PAGE

NR_PAGES = 10
BOTH = (MADV_MERGEABLE, MADV_UNMERGEABLE)


def map_file(state):
    """Map a file shared, as madvise01 does."""
    with tempfile.TemporaryFile() as file:
        file.truncate(NR_PAGES * PAGE)
        state.mapping = mmap.mmap(file.fileno(), NR_PAGES * PAGE)
    state.address = ctypes.addressof(ctypes.c_char.from_buffer(state.mapping))


def advise_file(state, advice):
    """Return the errno of the kernel's madvise, and of ours, on the shared file mapping."""
    libc = ctypes.CDLL(None, use_errno=True)
    start, size = ctypes.c_void_p(state.address), ctypes.c_size_t(NR_PAGES * PAGE)
    kernel = ctypes.get_errno() if libc.madvise(start, size, advice) else 0
    try:
        return kernel, ksmemu.madvise(state.address, NR_PAGES * PAGE, advice)
    except OSError as error:
        return kernel, error.errno


def test_madvise01(child):
    one = child()
    for advice in BOTH * 2:
        assert one.call(advise_space, advice) == 0


def advise_space(state, advice):
    """Advise memory, new or advised before; return 0, or the errno."""
    if not hasattr(state, "space"):
        state.space = ksmemu.AddressSpace(NR_PAGES * PAGE)
        state.space.mmap(NR_PAGES * PAGE)
    try:
        return ksmemu.madvise(state.space.start, NR_PAGES * PAGE, advice)
    except OSError as error:
        return error.errno


def test_madvise01_on_what_ksm_ignores(child):
    one = child()
    one.call(map_file)
    for advice in BOTH:
        kernel, ours = one.call(advise_file, advice)
        assert kernel in (0, errno.EINVAL)  # EINVAL: a kernel without KSM, which is madvise02
        assert ours == errno.ENOMEM


def test_madvise02(ksmd, child):
    """The kernel says EINVAL to both; see ksmemu/README.md for why not here."""
    one = child()
    ksmd.close()
    assert one.call(advise_space, MADV_MERGEABLE) == errno.ENOTCONN
    assert one.call(advise_space, MADV_UNMERGEABLE) == 0

"""A program's own userfaultfd, with write-protection: what a worker may use beside ksmemu's."""

import ctypes
import fcntl
import os
import struct

_SYS_USERFAULTFD = 323
"""Source: <asm/unistd_64.h>."""
_UFFD_API = 0xAA
_USER_MODE_ONLY = 1
_WP_HUGETLBFS_SHMEM = 1 << 12
_REGISTER_MODE_WP = 1 << 1
_API, _REGISTER, _UNREGISTER, _WAKE, _WRITEPROTECT = (
    0xC018AA3F,
    0xC020AA00,
    0x8010AA01,
    0x8010AA02,
    0xC018AA06,
)


class Userfaultfd:
    """A userfaultfd of the calling process. Every method raises OSError with the kernel's errno."""

    def __init__(self):
        libc = ctypes.CDLL(None, use_errno=True)
        self.fd = libc.syscall(ctypes.c_long(_SYS_USERFAULTFD), os.O_CLOEXEC | _USER_MODE_ONLY)
        if self.fd < 0:
            raise OSError(ctypes.get_errno(), "userfaultfd")
        self._ioctl(_API, "QQQ", _UFFD_API, _WP_HUGETLBFS_SHMEM, 0)

    def _ioctl(self, request, layout, *fields):
        fcntl.ioctl(self.fd, request, bytearray(struct.pack(layout, *fields)))

    def register(self, start, size):
        self._ioctl(_REGISTER, "QQQQ", start, size, _REGISTER_MODE_WP, 0)

    def write_protect(self, start, size, on=True):
        self._ioctl(_WRITEPROTECT, "QQQ", start, size, int(on))

    def unregister(self, start, size):
        """Watch no more, and wake who sleeps: that it does not do by itself."""
        self._ioctl(_UNREGISTER, "QQ", start, size)
        self._ioctl(_WAKE, "QQ", start, size)

    def close(self):
        os.close(self.fd)

"""What this kernel can do for ksmemu: probed once a process, with the reason for each "no".

Everybody else reads the answer; nobody compares kernel versions. `ksmemu check` prints it.
"""

from __future__ import annotations

import errno
import functools
import importlib.util
import os
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ksmemu import _core
from ksmemu.errors import KernelLacksError

# Source: UFFD_FEATURE_* of <linux/userfaultfd.h>
_PAGEFAULT_FLAG_WP = 1 << 0
_WP_HUGETLBFS_SHMEM = 1 << 12
_WP_UNPOPULATED = 1 << 13
_WP_ASYNC = 1 << 15

_DEFAULT_MAP_COUNT = 65530
"""Source: DEFAULT_MAX_MAP_COUNT of <linux/mm.h>."""
_ROOM_BYTES = 1 << 30

KSM = Path("/sys/kernel/mm/ksm")
"""Where the kernel has its control files, and where the programs that know KSM look for them."""


@dataclass(frozen=True, slots=True)
class Feature:
    """One facility, and what its presence or absence means."""

    name: str
    ok: bool
    consequence: str
    remedy: str
    """How to get it; empty when it is there."""

    def __str__(self) -> str:
        """Name, what follows, and how to get it."""
        remedy = f"; {self.remedy}" if self.remedy else ""
        return f"{self.name}: {self.consequence}{remedy}"


@functools.cache
def probe() -> tuple[Feature, ...]:
    """Ask the kernel; the answer holds for the life of the process.

    Raises:
        OSError: EMFILE, ENFILE, ENOMEM: it could not be asked.
    """
    bits, user_mode_only, problem = _probe_userfaultfd()
    has_pagemap_scan = _has_pagemap_scan()
    return (
        _feature(
            "userfaultfd",
            problem is None,
            "pages can be held while they are compared",
            f"nothing can be merged ({problem})",
            "needs CONFIG_USERFAULTFD, and a container whose seccomp profile allows userfaultfd(2)",
        ),
        _feature(
            "write-protect of shared memory",
            bits & _PAGEFAULT_FLAG_WP != 0 and bits & _WP_HUGETLBFS_SHMEM != 0,
            "writers of one page can be held off",
            "nothing can be merged",
            "needs Linux 5.19 or later",
        ),
        _feature(
            "WP_UNPOPULATED",
            bits & _WP_UNPOPULATED != 0,
            "pages that are not mapped yet are held too",
            "a first write could be missed, so nothing can be merged",
            "needs Linux 6.4 or later",
        ),
        _feature(
            "WP_ASYNC",
            bits & _WP_ASYNC != 0,
            "the kernel records which pages are written",
            "checksums find out what is written: scanning costs more",
            "needs Linux 6.7 or later",
        ),
        _feature(
            "PAGEMAP_SCAN",
            has_pagemap_scan,
            "that record is read in nanoseconds a page",
            "checksums find out what is written: scanning costs more",
            "needs Linux 6.7 or later",
        ),
        _feature(
            "privilege",
            problem is None and not user_mode_only,
            "a system call may write into a held page: it waits",
            "a system call that writes into a page in the microseconds it is held gets EFAULT",
            "sysctl vm.unprivileged_userfaultfd=1, or access to /dev/userfaultfd, or root",
        ),
        _shared_memory_room(),
        _mapping_budget(),
        fuse(),
    )


@functools.cache
def probe_exec() -> tuple[Feature, ...]:
    """Ask for what `ksmemu exec` needs besides; a program is started to find out."""
    problem = _private_mounts_problem()
    return (
        _feature(
            "CONFIG_KSM",
            KSM.is_dir(),
            f"`ksmemu exec` has {KSM} to lay control files over",
            f"`ksmemu exec` has no {KSM} to lay control files over",
            "needs a kernel with CONFIG_KSM; a program that can be told where to look needs no `exec`",
        ),
        _feature(
            "private mounts",
            problem is None,
            "`ksmemu exec` can do so unseen by others",
            f"`ksmemu exec` cannot run anything ({problem})",
            "needs root with CAP_SYS_ADMIN, or user namespaces: sysctl user.max_user_namespaces=9999,"
            " kernel.unprivileged_userns_clone=1, kernel.apparmor_restrict_unprivileged_userns=0",
        ),
    )


def private_mounts() -> list[str]:
    """Return the command that runs another one, as root of some kind, in mounts of its own."""
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    return ["unshare", *user, "--mount", "--propagation", "private", "--"]


def required(features: Iterable[Feature]) -> list[Feature]:
    """Return what is missing and makes ksmemu impossible; empty if all is well."""
    needed = (
        "userfaultfd",
        "write-protect of shared memory",
        "WP_UNPOPULATED",
    )
    return [feature for feature in features if feature.name in needed and not feature.ok]


def require() -> None:
    """Return if ksmemu can work here; KernelLacksError has the text of `ksmemu check` otherwise.

    Raises:
        OSError: as probe().
    """
    _refuse(required(probe()))


def require_exec() -> None:
    """Return if `ksmemu exec` can work here; KernelLacksError as of require() otherwise."""
    _refuse(feature for feature in probe_exec() if not feature.ok)


def _refuse(missing: Iterable[Feature]) -> None:
    if text := "\n".join(f"no  {feature}" for feature in missing):
        raise KernelLacksError(text)


@functools.cache
def fuse() -> Feature:
    """Return whether FUSE can serve the control files."""
    problem = _fuse_problem()
    return _feature(
        "FUSE",
        problem is None,
        "`ksmemu start --fuse` refuses a bad value in a control file as the kernel does",
        f"control files are plain files only ({problem})",
        "pip install 'ksmemu[fuse]', apt-get install fuse3; access to /dev/fuse (container: --device)",
    )


def require_fuse() -> None:
    """Return if FUSE can serve the control files; KernelLacksError has the text of `ksmemu check`."""
    if not fuse().ok:
        raise KernelLacksError(f"no  {fuse()}")


def tracker() -> Literal["written", "checksum"]:
    """Return how to learn what was written: by the kernel's record, or by comparing checksums."""
    present = {feature.name for feature in probe() if feature.ok}
    return "written" if {"WP_ASYNC", "PAGEMAP_SCAN"} <= present else "checksum"


def _feature(name: str, ok: bool, if_yes: str, if_no: str, remedy: str) -> Feature:  # noqa: FBT001 (the answer)
    return Feature(name, ok, if_yes, "") if ok else Feature(name, ok, if_no, remedy)


def _probe_userfaultfd() -> tuple[int, bool, str | None]:
    """Return feature bits, whether user-mode faults only, and why there is none at all."""
    try:
        bits, user_mode_only = _core.probe_userfaultfd()
    except OSError as problem:
        if problem.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
            raise  # no answer of the kernel's that would hold for life
        return 0, True, problem.strerror or str(problem)
    return bits, user_mode_only, None


def _has_pagemap_scan() -> bool:
    try:
        _core.probe_pagemap_scan()
    except OSError as problem:
        if problem.errno not in (
            errno.ENOTTY,
            errno.EINVAL,
            errno.ENOENT,
            errno.EACCES,
            errno.EPERM,
        ):
            raise
        return False
    return True


def _fuse_problem() -> str | None:
    if importlib.util.find_spec("mfusepy") is None:
        return "there is no mfusepy"
    if shutil.which("fusermount3") is None:
        return "there is no fusermount3"
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "/dev/fuse cannot be opened"
    return None


def _private_mounts_problem() -> str | None:
    """Return why a mount in a private namespace fails, or None."""
    command = [*private_mounts(), "mount", "--bind", "/dev/null", "/dev/null"]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except OSError as problem:
        return f"{problem.filename}: {problem.strerror}"
    except subprocess.CalledProcessError as problem:
        return str(problem.stderr).partition("\n")[0]
    return None


def _shared_memory_room() -> Feature:
    try:
        room = os.statvfs("/dev/shm")
        free_bytes = room.f_bavail * room.f_frsize
    except OSError:
        free_bytes = 0
    return _feature(
        "/dev/shm room",
        free_bytes >= _ROOM_BYTES,
        f"{free_bytes >> 20} MiB free for address spaces",
        f"{free_bytes >> 20} MiB free: larger address spaces are made of a memfd",
        "mount -o remount,size=50% /dev/shm, or docker run --shm-size",
    )


def _mapping_budget() -> Feature:
    limit = int(Path("/proc/sys/vm/max_map_count").read_text())
    return _feature(
        "vm.max_map_count",
        limit >= _DEFAULT_MAP_COUNT,
        f"{limit} mappings a process, one for each merged run",
        f"only {limit} mappings a process: pages beyond that budget stay unmerged",
        "sysctl vm.max_map_count=262144",
    )

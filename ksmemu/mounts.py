"""What is mounted below a directory, and how to take it away.

Nothing here touches a mounted file: its server may be dead ("Transport endpoint is not connected").
"""

from __future__ import annotations

import errno
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from ksmemu.errors import KsmError

FUSE_TYPE = "ksmemu"
"""Ours are of type `fuse.ksmemu`."""


@dataclass(frozen=True, slots=True)
class Mount:
    """One mount of this process's namespace."""

    path: str
    device: str
    """Major and minor number: no other mount has them as long as this one is there."""
    kind: str


def below(directory: Path) -> list[Mount]:
    """Return what is mounted at or below a directory, that which lies on top first.

    Source: /proc/PID/mountinfo, proc(5).
    """
    place = os.path.realpath(directory.parent) + f"/{directory.name}"
    lines = Path("/proc/self/mountinfo").read_bytes().splitlines()
    mounts = [_mount(line.split()) for line in reversed(lines)]
    return [mount for mount in mounts if mount.path == place or mount.path.startswith(f"{place}/")]


def detach(mount: Mount) -> None:
    """Unmount a FUSE mount lazily, also a dead one; nothing if it has gone.

    Raises:
        KsmError: EBUSY if it is still there.
        OSError: there is no fusermount3.
    """
    if mount not in below(Path(mount.path)):  # by now it may be another's place
        return
    said = subprocess.run(["fusermount3", "-u", "-z", mount.path], capture_output=True, check=False)
    if mount in below(Path(mount.path)):
        raise KsmError(errno.EBUSY, f"{mount.path} stays mounted: {os.fsdecode(said.stderr).strip()}")


def _mount(fields: list[bytes]) -> Mount:
    kind = fields[fields.index(b"-") + 1]
    path = re.sub(rb"\\([0-7]{3})", lambda code: bytes([int(code[1], 8)]), fields[4])
    return Mount(os.fsdecode(path), fields[2].decode(), kind.decode())

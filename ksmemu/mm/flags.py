"""What holds for the whole process, for memory that is there and that comes (the kernel's mm->flags).

Set by prctl.py and merge_pid.py, obeyed wherever memory is mapped. A forked child has its parent's flags by
itself, but for what was asked of the parent's pid; a new program finds them in its environment.
"""

from __future__ import annotations

import os
from pathlib import Path

VARIABLE = "KSMEMU_MEMORY_MERGE"
"""Of the environment: what a new program inherits, 1 or 0."""

merge_any = os.environ.get(VARIABLE) == "1"
"""Every mapping is mergeable (MMF_VM_MERGE_ANY): this process has asked for it, or inherits it."""

refuses = os.environ.get(VARIABLE) == "0"
"""Nobody else may ask for it: this process has turned merging off, or inherits that."""

merge_all: set[Path] = set()
"""The instances whose ksmd was told to merge this process (merge_pid; MMF_VM_MERGEALL of 2009)."""


def set_merge_any(on: bool) -> None:  # noqa: FBT001 - as the prctl
    """Note what this process wants; children, also those that are started anew, want it too."""
    global merge_any, refuses
    merge_any, refuses = on, not on
    os.environ[VARIABLE] = "1" if on else "0"


def forget_in_child() -> None:
    """This is a forked child: nobody has asked for its pid."""
    merge_all.clear()

"""The kernel's own KSM tracepoints, in a trace of their own: nobody else's tracing is touched."""

import contextlib
import os
import re
import subprocess
import tempfile
from pathlib import Path

_LINE = re.compile(r"\[\d+\] \S+ +([\d.]+): (ksm_\w+): (.*)")
_TEXTS = {
    "ksm_start_scan": r"seq (?P<seq>\d+) rmap size (?P<rmap_entries>\d+)",
    "ksm_stop_scan": r"seq (?P<seq>\d+) rmap size (?P<rmap_entries>\d+)",
    "ksm_enter": r"mm (?P<mm>\w+)",
    "ksm_exit": r"mm (?P<mm>\w+)",
    "ksm_merge_one_page": r"ksm pfn (?P<pfn>\d+) rmap_item (?P<rmap_item>\w+)"
    r" mm (?P<mm>\w+) error (?P<err>-?\d+)",
    "ksm_merge_with_ksm_page": r"(?P<ksm_page>ksm )?pfn (?P<pfn>\d+) rmap_item (?P<rmap_item>\w+)"
    r" mm (?P<mm>\w+) error (?P<err>-?\d+)",
    "ksm_remove_ksm_page": r"pfn (?P<pfn>\d+)",
    "ksm_remove_rmap_item": r"pfn (?P<pfn>\d+) rmap_item (?P<rmap_item>\w+) mm (?P<mm>\w+)",
    "ksm_advisor": r"ksm scan time (?P<scan_time>\d+) pages_to_scan (?P<pages_to_scan>\d+)"
    r" cpu percent (?P<cpu_percent>\d+)",
}
"""How the kernel prints each; its addresses are hashed, so they stay words."""
_NUMBERS = {"seq", "rmap_entries", "pfn", "err", "scan_time", "pages_to_scan", "cpu_percent"}


@contextlib.contextmanager
def mounted():
    """Yield a folder where tracefs is; root only.

    It is reached through a descriptor: no mount is left however a test ends.
    """
    with tempfile.TemporaryDirectory(prefix="ksmemu-tracefs-") as folder:
        subprocess.run(["mount", "-t", "tracefs", "tracefs", folder], check=True)
        try:
            root = os.open(folder, os.O_PATH | os.O_DIRECTORY)
        finally:
            subprocess.run(["umount", "--lazy", folder], check=True)
    try:
        yield Path(f"/proc/self/fd/{root}")
    finally:
        os.close(root)


def fields(tracefs, name):
    """Return the fields of a tracepoint, without those that all have."""
    text = (tracefs / "events/ksm" / name / "format").read_text()
    found = re.findall(r"field:[^;]*?(\w+);", text)
    return tuple(field for field in found if not field.startswith("common_"))


@contextlib.contextmanager
def kernel_trace():
    """Record the kernel's nine events; yield a function that returns them as dicts, oldest first."""
    with mounted() as tracefs:
        instance = tracefs / f"instances/ksmemu-{os.getpid()}"
        instance.mkdir()
        try:
            enable = instance / "events/ksm/enable"
            enable.write_text("1")
            try:
                yield lambda: _parsed((instance / "trace").read_text())
            finally:
                enable.write_text("0")
        finally:
            instance.rmdir()


def _parsed(text):
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert not any("LOST" in line for line in lines), "the kernel's buffer was too small"
    return [_event(line) for line in lines]


def _event(line):
    ts, name, text = _LINE.search(line).groups()
    values = re.fullmatch(_TEXTS[name], text).groupdict()
    if "ksm_page" in values:
        values["ksm_page"] = values["ksm_page"] is not None
    values |= {key: int(value) for key, value in values.items() if key in _NUMBERS}
    return {"event": name, "ts": float(ts), **values}

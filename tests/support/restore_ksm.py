"""Puts the tunables of the kernel's KSM back when its standard input ends, however the test ends.

A process of its own, with modules of the standard library only: it outlives a test that is killed.
"""

import json
import signal
import sys
from pathlib import Path

KSM = Path("/sys/kernel/mm/ksm")
_UNMERGE = 2
_FIRST, _LAST = "advisor_mode", "run"
"""The advisor refuses pages_to_scan, and changes it when it comes or goes."""


def restore(saved):
    """Unmerge everything, put every tunable back, `run` last."""
    _store("run", _UNMERGE)
    _store(_FIRST, "none")
    for name, value in saved.items():
        if name not in {_FIRST, _LAST}:
            _store(name, value)
    if saved[_FIRST] != "none":
        _store(_FIRST, saved[_FIRST])
    _store(_LAST, saved[_LAST])


def _store(name, value):
    (KSM / name).write_text(f"{value}\n")


def main():
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    saved = json.loads(sys.stdin.readline())
    print("ready", flush=True)  # noqa: T201 - the test waits for it
    sys.stdin.read()
    restore(saved)


if __name__ == "__main__":
    main()

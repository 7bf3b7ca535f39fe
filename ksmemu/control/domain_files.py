"""`stats/domains/UID[-LABEL]/NAME`: the counters of each security domain, under the names of the sums."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path

from ksmemu.control.value_file import ValueFile

log = logging.getLogger(__name__)

_MODE = 0o444


class DomainFiles:
    """The folder of all domains. Runs in: ksmd, one thread."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._shown: dict[str, dict[str, ValueFile]] = {}

    def publish(self, domains: Mapping[str, Mapping[str, int]]) -> None:
        """Show the counters of these domains, and no others; what cannot be made now is made later."""
        for name in self._shown.keys() - domains.keys():
            _close(self._shown.pop(name))
            shutil.rmtree(self._folder / name, ignore_errors=True)
        for name, counters in domains.items():
            if name not in self._shown:
                self._make(name, counters)
            for counter, file in self._shown.get(name, {}).items():
                file.show(str(counters[counter]))

    def _make(self, name: str, counters: Mapping[str, int]) -> None:
        files: dict[str, ValueFile] = {}
        try:
            for counter in counters:
                files[counter] = ValueFile(self._folder / name / counter, _MODE, "0")
        except OSError as error:  # no descriptor or no room left: figures are not worth an end
            log.info("the figures of domain %s are late: %s", name, error.strerror)
            _close(files)
            shutil.rmtree(self._folder / name, ignore_errors=True)
        else:
            self._shown[name] = files

    def close(self) -> None:
        """Close every file; they stay where they are."""
        for files in self._shown.values():
            _close(files)


def _close(files: dict[str, ValueFile]) -> None:
    for file in files.values():
        file.close()

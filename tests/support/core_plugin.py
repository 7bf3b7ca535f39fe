"""pytest plugin: load the core that $KSMEMU_CORE names before anything imports ksmemu."""

import ctypes
import os
import sys

from tests.support import cores

cores.load(os.environ["KSMEMU_CORE"])


def _save_coverage_at_exit(save):
    leave = os._exit

    def save_and_leave(status):
        save()
        leave(status)

    os._exit = save_and_leave


if save := getattr(ctypes.CDLL(os.environ["KSMEMU_CORE"]), "faults_save_coverage", None):
    _save_coverage_at_exit(save)


def pytest_report_header():
    return f"core: {sys.modules['ksmemu._core'].__file__}"

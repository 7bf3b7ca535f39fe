"""pytest plugin: load the core that $KSMEMU_CORE names before anything imports ksmemu."""

import os
import sys

from tests.support import cores

cores.load(os.environ["KSMEMU_CORE"])


def pytest_report_header():
    return f"core: {sys.modules['ksmemu._core'].__file__}"

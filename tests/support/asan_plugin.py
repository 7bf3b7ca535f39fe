"""pytest plugin: load the sanitized core before anything imports ksmemu."""

import importlib.machinery
import importlib.util
import os
import sys

assert "ksmemu._core" not in sys.modules
_PATH = os.environ["KSMEMU_ASAN_CORE"]
_LOADER = importlib.machinery.ExtensionFileLoader("ksmemu._core", _PATH)
_SPEC = importlib.util.spec_from_file_location("ksmemu._core", _PATH, loader=_LOADER)
sys.modules["ksmemu._core"] = importlib.util.module_from_spec(_SPEC)
_LOADER.exec_module(sys.modules["ksmemu._core"])


def pytest_report_header():
    return f"sanitized core: {sys.modules['ksmemu._core'].__file__}"

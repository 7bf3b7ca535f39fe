"""The control directory proper, whoever brings the stores; and the file that shows a text."""

from __future__ import annotations

import errno
import os

import pytest

from ksmemu.control.files import LINUX
from ksmemu.control.sysfs import ControlDirectory
from ksmemu.control.value_file import ValueFile


@pytest.fixture
def taken():
    return []


@pytest.fixture
def control(tmp_path, taken):
    control = ControlDirectory(
        tmp_path / "values", tmp_path / "stats", LINUX, lambda *store: taken.append(store)
    )
    yield control
    control.close()


def test_every_store_is_ksmds_to_obey_also_that_of_the_value_in_force(control, taken):
    for text in ("20", "20\n", "+20", "20\0junk"):
        control.store("sleep_millisecs", text)
    assert taken == [("sleep_millisecs", 20)] * 4


@pytest.mark.parametrize(
    ("name", "text", "number"),
    [
        ("run", "3", errno.EINVAL),
        ("max_page_sharing", "4294967296", errno.ERANGE),
        ("smart_scan", "", errno.EINVAL),
    ],
)
def test_a_bad_store_gets_its_errno_and_changes_nothing(control, taken, caplog, name, text, number):
    before = control[name]
    with pytest.raises(OSError, match="must be") as refused:
        control.store(name, text)
    assert refused.value.errno == number
    assert control[name] == before
    assert taken == []
    assert f"{name}: store of {text!r} refused, it is {before}: must be" in caplog.text


def test_a_file_shows_texts_of_any_length_and_nothing_of_older_ones(tmp_path):
    file = ValueFile(tmp_path / "pids", 0o644, "")
    held = os.open(tmp_path / "pids", os.O_RDONLY)
    for text in ("1 22 333", " ".join(map(str, range(997))), "7", ""):
        file.show(text)
        assert os.pread(held, 65536, 0).rstrip(b" \n") == text.encode()
    os.close(held)
    file.close()

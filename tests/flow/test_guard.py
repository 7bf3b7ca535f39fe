"""What is changed for a while is put back, however that ends."""

import contextlib
import errno
import signal

import pytest

from ksmemu.bench.guard import guarded, raised
from ksmemu.errors import KsmError
from tests.support.processes import Worker
from tests.support.waiting import wait_until


@pytest.fixture
def number(tmp_path):
    path = tmp_path / "number"
    path.write_text("17\n")
    return path


def raise_and_stay(state, path):
    state.stack = contextlib.ExitStack()
    state.stack.enter_context(raised(path, 23))


def test_a_number_is_raised_and_put_back(number):
    with raised(number, 23):
        assert number.read_text() == "23\n"
    assert number.read_text() == "17\n"


def test_a_number_that_is_large_enough_stays(number):
    with raised(number, 11):
        assert number.read_text() == "17\n"
        number.write_text("19\n")  # somebody else's, then: it is not ours to put back
    assert number.read_text() == "19\n"


@pytest.mark.parametrize("last", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_it_is_put_back_when_its_user_is_killed(number, last):
    with Worker() as worker:
        worker.call(raise_and_stay, number)
        assert number.read_text() == "23\n"
        worker.kill(last)
        wait_until(lambda: number.read_text() == "17\n", what="the old number")


def test_an_error_inside_comes_through(number):
    with pytest.raises(ZeroDivisionError), raised(number, 23):
        _ = 1 // 0
    assert number.read_text() == "17\n"


def test_what_cannot_be_put_back_is_an_error(tmp_path, capfd):
    with pytest.raises(KsmError) as caught, guarded([(str(tmp_path / "gone" / "file"), "1\n")]):
        pass
    assert caught.value.errno == errno.EIO
    assert "gone/file: 1: No such file" in capfd.readouterr().err

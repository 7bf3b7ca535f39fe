"""Nobody poses as a ksmd that serves everybody: which directories and listeners a client believes."""

import os

import pytest

import ksmemu
from ksmemu.instance import Instance
from tests.support.processes import Worker
from tests.support.users import ALICE, BOB, SERVICE, UserWorker, common_folder

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def folder():
    with common_folder() as folder:
        yield folder


@pytest.fixture(scope="module")
def alice():
    with UserWorker(ALICE) as worker:
        yield worker


@pytest.fixture
def listener():
    """Let a user listen in a directory of his as a ksmd does: listener(directory, uid)."""
    started = []

    def listen(directory, uid, mode=0o755):
        directory.mkdir(mode=0o755)
        os.chown(directory, uid, uid)
        directory.chmod(mode)
        started.append(UserWorker(uid) if uid else Worker())
        started[-1].call(claim_and_listen, str(directory))
        return directory

    yield listen
    for worker in started:
        worker.call(let_go)
        worker.close()


def claim_and_listen(state, directory):
    instance = Instance.resolve(directory)
    state.claim = instance.claim(all_users=True)
    state.listener = instance.listen(all_users=True)


def let_go(state):
    state.listener.close()
    state.claim.release()


def verdict(_state, directory, believes_all=False):
    """Connect, as the first advice does; return what comes of it. None: the default directory."""
    believed = Instance._is_believed
    if believes_all:
        Instance._is_believed = lambda *_: True
    try:
        Instance.resolve(directory).connect().close()
    except OSError as error:
        return type(error)
    finally:
        Instance._is_believed = believed
    return None


def verdict_by_default(state, runtime):
    os.environ["XDG_RUNTIME_DIR"] = runtime
    try:
        return verdict(state, None)
    finally:
        del os.environ["XDG_RUNTIME_DIR"]


def test_the_ksmd_of_another_user_is_not_believed_wherever_it_is(folder, alice, listener):
    directory = listener(folder / "bobs", BOB)
    assert alice.call(verdict, str(directory)) is ksmemu.ForeignInstanceError
    assert alice.call(verdict, str(directory), True) is None, "the negative control"


def test_the_ksmd_of_root_is_believed(folder, alice, listener):
    assert alice.call(verdict, str(listener(folder / "roots", 0))) is None


def test_but_not_where_a_group_may_write(folder, alice, listener):
    directory = listener(folder / "groups", 0, mode=0o775)
    assert alice.call(verdict, str(directory)) is ksmemu.ForeignInstanceError


def test_the_ksmd_of_a_service_is_believed_if_it_was_named_where_root_has_put_it(folder, alice, listener):
    directory = listener(folder / "ksmemu", SERVICE)
    assert alice.call(verdict, str(directory)) is None
    assert alice.call(verdict_by_default, str(folder)) is ksmemu.ForeignInstanceError
    with Worker() as root:
        assert root.call(verdict, str(directory)) is ksmemu.ForeignInstanceError


@pytest.mark.parametrize(("owner", "mode"), [(0, 0o1777), (BOB, 0o755), (SERVICE, 0o755)])
def test_but_not_where_it_can_have_put_itself(folder, alice, listener, owner, mode):
    parent = folder / f"parent-{owner}"
    parent.mkdir()
    os.chown(parent, owner, owner)
    parent.chmod(mode)
    directory = listener(parent / "ksmd", SERVICE)
    assert alice.call(verdict, str(directory)) is ksmemu.ForeignInstanceError


def test_who_listens_in_roots_directory_must_be_root(folder, alice, listener):
    bobs = listener(folder / "bob", BOB)
    roots = folder / "root"
    roots.mkdir(mode=0o755)
    os.link(bobs / "ksmd.sock", roots / "ksmd.sock")
    assert alice.call(verdict, str(roots)) is ksmemu.ForeignInstanceError


def test_a_ksmd_that_serves_its_own_user_lets_nobody_else_in(folder, alice):
    with ksmemu.Ksmd(folder / "private"):
        assert alice.call(verdict, str(folder / "private")) is PermissionError
        (folder / "private").chmod(0o755)
        assert alice.call(verdict, str(folder / "private")) is PermissionError

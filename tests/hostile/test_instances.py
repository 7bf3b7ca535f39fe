"""Directories that are somebody else's: refused with a reason, and nothing in them changes."""

import os

import pytest

import ksmemu

NOBODY = 65534
REFUSED = ksmemu.ForeignInstanceError if os.geteuid() == 0 else ksmemu.NotRunningError
"""What a client is told of a directory of nobody's, and of root's in which nobody listens."""


def test_a_second_ksmd_on_a_directory_is_refused_and_the_first_goes_on(ksmd, honest):
    before = _listing(ksmd.directory)
    for _ in range(3):
        with pytest.raises(ksmemu.AlreadyServedError, match=f"pid {ksmd.pid}"):
            ksmemu.Ksmd(ksmd.directory, run=2, max_page_sharing=7)
    assert _listing(ksmd.directory) == before
    assert (ksmd.read("run"), ksmd.read("max_page_sharing")) == (1, 256)
    assert honest.is_merged()
    honest.assert_is_served()


def _listing(directory):
    """Return what is there, without what ksmd is about to rename: it goes on meanwhile."""
    there = (path.relative_to(directory) for path in directory.rglob("*"))
    return sorted(path for path in there if not path.name.startswith("."))


@pytest.fixture
def foreign(tmp_path):
    """A directory of another user, whoever runs the tests."""
    if os.geteuid() != 0:
        return "/usr/lib"
    directory = tmp_path / "foreign"
    directory.mkdir(mode=0o755)
    os.chown(directory, NOBODY, NOBODY)
    return directory


def test_the_directory_of_another_user_is_refused(foreign):
    before = os.listdir(foreign)
    with pytest.raises(ksmemu.ForeignInstanceError, match="another user"):
        ksmemu.Ksmd(foreign)
    with pytest.raises(ksmemu.ForeignInstanceError, match="another user"):
        ksmemu.connect(foreign)
    with ksmemu.AddressSpace(4096, instance=foreign) as space:
        space.mmap(4096)
        with pytest.raises(REFUSED):
            space.madvise_all(ksmemu.MADV_MERGEABLE)
        assert not space.is_advised
    assert os.listdir(foreign) == before

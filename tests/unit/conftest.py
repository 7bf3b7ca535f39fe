"""Instances of one's own, and directories of somebody else."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from ksmemu.instance import Claim, Instance

NOBODY = 65534


@pytest.fixture
def instance(tmp_path: Path) -> Instance:
    return Instance.resolve(tmp_path / "instance")


@pytest.fixture
def claim(instance: Instance) -> Iterator[Claim]:
    claim = instance.claim()
    yield claim
    claim.release()


@pytest.fixture
def foreign(tmp_path: Path) -> Instance:
    """An instance directory of another user, whoever runs the tests."""
    if os.geteuid() != 0:
        return Instance.resolve("/usr")
    directory = tmp_path / "foreign"
    directory.mkdir(mode=0o755)
    os.chown(directory, NOBODY, NOBODY)
    return Instance.resolve(directory)

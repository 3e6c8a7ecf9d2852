"""A finished run to start from, and a signal that stops one."""

import os
import shutil
import signal

import pytest
from small_training import Stopped, one_block_trainer


@pytest.fixture(scope="module")
def three_epochs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("three epochs")
    one_block_trainer().train(3, folder)
    return folder


@pytest.fixture
def begun(three_epochs, tmp_path):
    """A finished run of three epochs."""
    return shutil.copytree(three_epochs, tmp_path, dirs_exist_ok=True)


@pytest.fixture
def sigterm():
    """Sends this process SIGTERM, whose handler raises `Stopped`."""

    def stop(*_):
        raise Stopped

    before = signal.signal(signal.SIGTERM, stop)
    yield lambda: os.kill(os.getpid(), signal.SIGTERM)
    signal.signal(signal.SIGTERM, before)

"""A pytest plugin, `-p tests.helpers.sanitizer`: run the kernels on a pretended GPU and watch them.

ttsem compiles every launch with Triton's own front end and executes the result. A test fails where a program
reads or writes past a tensor, where two programs race, and, because new memory holds NaN, where nobody wrote.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from ttsem import sanitize

running = ExitStack()
session = running.enter_context(sanitize.session())  # before tests are collected, because they ask for a GPU


def pytest_unconfigure() -> None:
    running.close()


@pytest.fixture(autouse=True)
def launches() -> Iterator[Callable[[], int]]:
    """The number of launches of the test so far. A test fails that has none, or one not checked for races."""
    started, unchecked = session.launches, session.races_unchecked
    yield lambda: session.launches - started
    assert session.launches > started, "no kernel was launched"
    assert session.races_unchecked == unchecked, "a launch is too large to be checked for races"

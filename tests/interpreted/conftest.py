"""These tests run the kernels on a CPU, interpreted: `TRITON_INTERPRET=1 pytest tests/interpreted`.

Triton decides at import whether it interprets, so these tests are a separate run.
"""

from collections.abc import Iterator

import pytest
import triton
from triton.runtime.interpreter import InterpretedFunction

collect_ignore_glob = [] if triton.knobs.runtime.interpret else ["test_*.py"]


@pytest.fixture(autouse=True)
def a_kernel_runs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fail a test that interpreted no kernel, because it would prove nothing."""
    launches = []
    run = InterpretedFunction.run
    monkeypatch.setattr(InterpretedFunction, "run", lambda *a, **k: (launches.append(1), run(*a, **k))[1])
    yield
    assert launches, "no kernel was interpreted"

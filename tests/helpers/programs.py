"""Programs beside this file, run in a process of their own with warnings as errors."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def output_of(program: str, *arguments: object) -> Any:
    """What a program prints as JSON; its failure shows its stderr."""
    done = subprocess.run(
        [sys.executable, "-W", "error", str(HERE / program), *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parents[1])},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)

"""Results on disk, as this project and as pytest-benchmark read them."""

import subprocess
import sys
from pathlib import Path

import fakes
import torch

from bench import results


def test_what_is_written_is_read(tmp_path):
    document = fakes.document()
    file = tmp_path / "new" / "Fake_GPU.json"
    results.write(file, document)
    assert results.read(file) == document
    assert [f.name for f in file.parent.iterdir()] == [file.name]


def test_where_it_ran_is_told():
    machine = results.machine(fakes.CPU)
    assert machine["torch"] == torch.__version__
    assert machine["threads"] == torch.get_num_threads()
    assert machine["device"].replace("_", "").isalnum()
    assert len(results.commit()["id"]) == 40


def test_percentiles():
    found = results.statistics_of([0.1 * i for i in range(1, 12)])
    assert [round(found["percentiles"][p], 3) for p in ("5", "50", "90")] == [0.15, 0.6, 1.0]
    assert found["rounds"] == 11


def test_pytest_benchmark_compares_two_of_them(tmp_path):
    for name, share in (("before", 0.4), ("after", 0.5)):
        results.write(tmp_path / f"{name}.json", fakes.document(share))
    compare = "from pytest_benchmark.cli import main; main()"
    command = [sys.executable, "-c", compare, "compare", "--columns=median", "--sort=name"]
    done = subprocess.run(
        [*command, str(tmp_path / "before.json"), str(tmp_path / "after.json")],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr
    rows = [line for line in (done.stdout + done.stderr).splitlines() if "library (" in line]
    assert len(rows) == 2 * 7

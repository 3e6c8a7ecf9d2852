"""Results files can be read by this project and by pytest-benchmark."""

import fakes
import torch
from pytest_benchmark import cli

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


def test_pytest_benchmark_compares_two_of_them(tmp_path, monkeypatch, capfd):
    for name, share in (("before", 0.4), ("after", 0.5)):
        results.write(tmp_path / f"{name}.json", fakes.document(share))
    files = [str(tmp_path / f"{name}.json") for name in ("before", "after")]
    monkeypatch.setattr("sys.argv", ["pytest-benchmark", "compare", "--columns=median", *files])
    cli.main()
    message = "".join(capfd.readouterr())
    assert sum("library (" in line for line in message.splitlines()) == 2 * 7

PY := .venv/bin/python
# Each process would compile the code of PyTorch again.
unexport PYTHONDONTWRITEBYTECODE

.venv/ready: pyproject.toml constraints.txt
	python3 -m venv .venv && $(PY) -m pip install --quiet --no-compile --constraint constraints.txt --editable '.[dev]' && touch $@

.oldest/ready: pyproject.toml constraints-oldest.txt
	python3 -m venv .oldest && .oldest/bin/python -m pip install --quiet --constraint constraints-oldest.txt --editable . pytest pytest-benchmark pytest-xdist hypothesis peft torchao && touch $@

.venv/docs: .venv/ready
	$(PY) -m pip install --quiet --constraint constraints.txt --editable '.[docs]' && touch $@

# ttsem asks for Python 3.12, and runs on 3.11 as well
.venv/sanitize: .venv/ready
	$(PY) -m pip install --quiet --constraint constraints.txt --ignore-requires-python --editable '.[sanitize]' && touch $@

demo: .venv/ready ; $(PY) -m dca_triton.cli demo
ablation: .venv/ready ; $(PY) -m dca_triton.cli ablate --config examples/faces.yaml --output runs/ablation
test: export CUDA_VISIBLE_DEVICES = -1
test: .venv/ready ; OMP_NUM_THREADS=1 $(PY) -m pytest --numprocesses 2 --dist loadfile && OMP_NUM_THREADS=1 TRITON_INTERPRET=1 $(PY) -m pytest --numprocesses 2 tests/interpreted
# Old timm uses what PyTorch announces to remove, so these announcements are no errors here.
oldest: export CUDA_VISIBLE_DEVICES = -1
oldest: OLDEST = OMP_NUM_THREADS=1 .oldest/bin/python -m pytest --numprocesses 2 -W ignore::DeprecationWarning
oldest: .oldest/ready ; $(OLDEST) tests/ops tests/model --ignore tests/model/test_export.py && TRITON_INTERPRET=1 $(OLDEST) tests/interpreted
sanitize: export CUDA_VISIBLE_DEVICES = -1
sanitize: .venv/sanitize ; OMP_NUM_THREADS=1 $(PY) -m pytest --numprocesses 2 -p tests.helpers.sanitizer -m "not driver" tests/gpu tests/sanitized
lint: .venv/ready ; .venv/bin/ruff check && .venv/bin/ruff format --check && .venv/bin/mypy
bench: .venv/ready ; KINETO_LOG_LEVEL=99 $(PY) -m bench
gpu: .venv/ready ; $(PY) -m bench.gpu
static: .venv/ready ; $(PY) -m bench.meter --baseline bench/meter/baseline.json
tune: .venv/ready ; $(PY) -m dca_triton.cli tune
backbones: .venv/ready ; $(PY) tests/helpers/backbones_table.py docs/backbones.md
docs: .venv/docs ; .venv/bin/mkdocs build --strict

.PHONY: demo ablation test oldest sanitize lint docs backbones bench static tune gpu

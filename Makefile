# make demo    compress, export and benchmark the packaged model (installs what it needs into .venv the first time)
# make test    the whole test suite
# make check   lint, format, types
# make clean   remove what these targets wrote, except .venv

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
DEMO := runs/quickstart

.PHONY: demo test check clean

demo: $(INSTALLED)
	$(BIN)/compress fit recipes/quickstart.yaml
	$(BIN)/compress export $(DEMO) --onnx --torch
	$(BIN)/compress bench $(DEMO)

# One thread per worker: two workers on a small machine otherwise spend their time waiting for each other.
test: export OMP_NUM_THREADS = 1
test: export OMP_WAIT_POLICY = passive
test: $(INSTALLED)
	$(BIN)/python -m pytest -n 2

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

# torch goes in through pip, first: uv does not see a CPU wheel that pip is configured to find locally.
# uv is only faster for the rest; where it cannot be installed or cannot reach pip's index, pip does it.
$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet uv || true
	$(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt -e '.[dev]' \
	  || $(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(DEMO) build dist *.egg-info .pytest_cache .hypothesis .ruff_cache
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

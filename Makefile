# make demo    compress, export and benchmark the packaged model (installs what it needs into .venv the first time)
# make test    the whole test suite
# make conformance  every method and kind on every architecture under every check; hours, goes on where it stopped
# make check   lint, format, types
# make numbers tables and figures of README.md and docs/ from docs/numbers/*.json, maps of rooms from the rooms themselves
# make docs    the same, then the documentation as pages in site/; fetches nothing
# make clean   remove what these targets wrote, except .venv

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
DOCS_INSTALLED := .venv/.docs
DEMO := runs/quickstart
# Empty for the newest versions that pyproject.toml allows: make test CONSTRAINTS=
CONSTRAINTS ?= -c constraints.txt

.PHONY: demo test conformance check numbers docs clean

demo: $(INSTALLED)
	$(BIN)/compress fit recipes/quickstart.yaml
	$(BIN)/compress export $(DEMO) --onnx --torch
	$(BIN)/compress bench $(DEMO)

# One thread per worker: two workers on a small machine otherwise spend their time waiting for each other. A file stays with
# one worker, so that what its tests share is made once.
test: export OMP_NUM_THREADS = 1
test: export OMP_WAIT_POLICY = passive
test: $(INSTALLED)
	$(BIN)/python -m pytest -n 2 --dist loadfile

# ARGS="--only latent_kv --limit 20" for a part; outcomes in runs/conformance.jsonl, the table in docs/numbers/conformance.json.
conformance: export OMP_NUM_THREADS = 1
conformance: $(INSTALLED)
	PYTHONPATH=tests $(BIN)/python -m conformance $(ARGS)

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

numbers: $(INSTALLED)
	$(BIN)/python docs/inject.py

# The variable stops an advertisement that the theme prints.
docs: export NO_MKDOCS_2_WARNING = 1
docs: numbers $(DOCS_INSTALLED)
	$(BIN)/mkdocs build --strict --quiet

# torch goes in through pip, first: uv does not see a CPU wheel that pip is configured to find locally.
# uv is only faster for the rest; where it cannot be installed or cannot reach pip's index, pip does it.
$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet $(CONSTRAINTS) torch
	$(BIN)/python -m pip install --quiet uv || true
	$(BIN)/uv pip install --quiet --python $(BIN)/python $(CONSTRAINTS) -e '.[dev]' \
	  || $(BIN)/python -m pip install --quiet $(CONSTRAINTS) -e '.[dev]'
	touch $@

# Apart from the rest: no test needs mkdocs, and the suite must install where only the package's own dependencies can be had.
$(DOCS_INSTALLED): $(INSTALLED)
	$(BIN)/uv pip install --quiet --python $(BIN)/python $(CONSTRAINTS) -e '.[docs]' \
	  || $(BIN)/python -m pip install --quiet $(CONSTRAINTS) -e '.[docs]'
	touch $@

clean:
	rm -rf $(DEMO) site build dist *.egg-info .pytest_cache .hypothesis .ruff_cache
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

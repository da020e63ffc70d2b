# Two commands do everything: `make demo` and `make test`. Both need Python >= 3.11 and make, nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Two test processes, each file in one of them: tests share what a file has made.
PARALLEL := -n 2 --dist loadfile

.PHONY: demo test test-all lint docs bench clean tiny

$(VENV)/demo.stamp: pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'titer needs Python 3.11 or newer')"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(VENV)/test.stamp: $(VENV)/demo.stamp
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test]"
	touch $@

demo: $(VENV)/demo.stamp  ## run the quickstart study and print where its report is
	$(BIN)/titer run quickstart --run runs/quickstart

test: $(VENV)/test.stamp  ## the default suite: offline, on the tiny model
	$(BIN)/python -m pytest $(PARALLEL) -m "not real and not slow"

test-all: $(VENV)/test.stamp  ## also the tests that fetch registry packages, need a browser (Debian: chromium chromium-driver) or take minutes
	$(BIN)/python -m pytest $(PARALLEL)

lint: $(VENV)/test.stamp
	$(BIN)/ruff check src tests scripts benchmarks examples
	$(BIN)/ruff format --check src tests scripts benchmarks examples
	$(BIN)/mypy

docs: $(VENV)/test.stamp  ## the documentation as a site, in build/site: offline, warnings are errors
	$(BIN)/python scripts/write_command_line.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

bench: $(VENV)/test.stamp  ## overhead of the engine against a bare PyTorch loop
	$(BIN)/python benchmarks/engine_overhead.py

tiny: $(VENV)/demo.stamp  ## make the tiny models again
	$(BIN)/python scripts/make_tiny_model.py

clean:
	rm -rf $(VENV) build dist src/*.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis

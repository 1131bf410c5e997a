# `make demo` and `make test` need Python >= 3.11, git and make; everything else goes into .venv.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
OUT ?= demo-output
# `make test WORKERS=` runs them one by one, as plain pytest does.
WORKERS ?= -n auto --dist worksteal

# What one Python has compiled, those that it starts need not compile again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup setup-demo demo test lint format types contracts check clean

help:
	@echo "make demo       run the whole path on the made corpus (about 5 minutes after installing)"
	@echo "make test       run the tests"
	@echo "make check      tests, lint, types and import contracts, as CI does"
	@echo "make format     format the code"
	@echo "make clean      remove .venv and what the demo wrote"

setup: $(VENV)/.ready-dev
setup-demo: $(VENV)/.ready-demo

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "imaginet_hub needs Python 3.11 or newer; $(PYTHON) is older. Say which one: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv

# pip does the same, several times slower, where uv cannot run.
define install
	$(BIN)/uv pip install --quiet --python $(BIN)/python --editable ".[$(1)]" || \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[$(1)]"
	@touch $@
endef

$(VENV)/.ready-demo: setup.cfg pyproject.toml | $(BIN)/python
	@echo "Installing into $(VENV) (torch alone is several GB; a minute or more) ..."
	$(call install,demo)

$(VENV)/.ready-dev: setup.cfg pyproject.toml | $(BIN)/python
	@echo "Installing into $(VENV) (torch alone is several GB; a minute or more) ..."
	$(call install,dev)
	@touch $(VENV)/.ready-demo

demo: setup-demo
	$(BIN)/imaginet demo --out $(OUT)

test: setup
	$(BIN)/python -m pytest $(WORKERS) $(PYTEST_ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: setup
	$(BIN)/mypy

contracts: setup
	$(BIN)/lint-imports

check: test lint types contracts

clean:
	rm -rf $(VENV) $(OUT) build *.egg-info

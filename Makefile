# make install   .venv with the project in it, editable        make demo   select, explain, generate, check
# make test      everything CI runs                            make lint   only its static part
# Another interpreter: make install PYTHON=python3.12          CPU builds of torch: see README.md, "Download size"

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: install install-dev demo test lint clean
.DELETE_ON_ERROR:

install: $(VENV)/.installed
install-dev: $(VENV)/.installed-dev

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Dodona needs Python 3.11 or newer; $(PYTHON) is older: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(BIN)/python pyproject.toml constraints.txt
	$(PIP) install --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) install --constraint constraints.txt --editable ".[dev]"
	@touch $@

demo: install
	@$(BIN)/python -m examples.demo

# One process per core, and one where there is a GPU: its tests measure the memory that is free on it.
WORKERS := $(if $(wildcard /dev/nvidiactl),0,auto)

# One thread per process: two threads of a busy two-core machine wait for each other more than they work.
test: export OMP_NUM_THREADS := 1
test: lint
	$(BIN)/python -m pytest -q -n $(WORKERS) --maxprocesses 8 --dist worksteal

lint: install-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict src/dodona/oracle src/dodona/cli src/dodona/runners

clean:
	rm -rf $(VENV) build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

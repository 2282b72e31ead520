# make quickstart   fresh machine → venv → install → train every stage, evaluate, report (quickstart/index.html)
# make test         fresh machine → venv → install → the test suite
# make check        ruff and mypy          make bench   the benchmarks this machine can run → benchmarks/results/
#
# Needs make and Python ≥ 3.11; nothing else. Variables: PYTHON, VENV, OUT, MINUTES, DATA, ARGS.

PYTHON ?= python3
VENV ?= .venv
OUT ?= quickstart
MINUTES ?= 15
BIN := $(VENV)/bin
# compiling every module of every package takes longer than all else; the few that are used are compiled once, when they are
PIP_FLAGS := --quiet --no-compile
unexport PYTHONDONTWRITEBYTECODE

.PHONY: quickstart test check format bench clean

quickstart: $(VENV)/.installed
	$(BIN)/cm3 quickstart --out $(OUT) --minutes $(MINUTES) $(if $(DATA),--data $(DATA)) $(ARGS)

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest $(ARGS)

check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.installed-dev
	$(BIN)/python -m benchmarks $(ARGS)

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "cm3 needs Python 3.11 or newer; $(PYTHON) is `$(PYTHON) --version 2>&1`. Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)

# an installed development environment is an installed environment
$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	test -e $(VENV)/.installed-dev -a $(VENV)/.installed-dev -nt pyproject.toml || $(BIN)/pip install $(PIP_FLAGS) --editable .
	touch $@

$(VENV)/.installed-dev: pyproject.toml | $(VENV)/bin/python
	$(BIN)/pip install $(PIP_FLAGS) --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache

# The house's doors. `make` lists them. Everything runs in .venv, which is made from pyproject.toml
# with the versions of constraints.txt, and made again when one of the two changes.

PYTHON ?= python3
RECIPE ?= laptop
ARGS   ?=
BIN    := .venv/bin
# Test files run side by side, one process per core, up to four; WORKERS=0: one after the other in one process.
WORKERS ?= $(shell n=$$(nproc 2>/dev/null || echo 2); if [ $$n -gt 4 ]; then echo 4; else echo $$n; fi)

.DEFAULT_GOAL := help
.PHONY: help run test test-slow test-gpu lint format clean

help:  ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' Makefile

run: .venv/.ready  ## run a recipe: make run RECIPE=laptop ARGS="--run-dir runs/first"
	$(BIN)/sekkei run $(RECIPE) $(ARGS)

test: lint  ## lint, types and the test suite (without the slow tests)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

test-slow: .venv/.ready-dev  ## the slow tests only
	$(BIN)/python -m pytest -m "slow and not gpu" --timeout 3600 $(ARGS)

test-gpu: .venv/.ready-dev  ## the tests that need a GPU (its torch goes into .venv by hand: the pinned one is the CPU's)
	$(BIN)/python -m pytest -m gpu tests/gpu $(ARGS)

lint: .venv/.ready-dev  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/.ready-dev  ## rewrite the code in the house's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove .venv and every cache; runs/ stays
	rm -rf .venv build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis src/*.egg-info
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else \
	  "sekkei needs Python 3.11 or newer and $(PYTHON) is %d.%d: make PYTHON=/path/to/python3.11" % v[:2])'
	$(PYTHON) -m venv .venv
	@echo "installing into .venv: a minute or two"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	@touch $@

.venv/.ready-dev: .venv/.ready
	@echo "installing what the tests need into .venv: a minute or two"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

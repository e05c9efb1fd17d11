# Everything a fresh machine with Python 3.11 or newer needs is made by these targets.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: help run test lint bench clean

help: ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

run: .venv/.run ## install what serving needs and open the app on http://127.0.0.1:7860
	$(BIN)/hilum serve

test: .venv/.test lint ## install everything, run the checks and all tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

lint: .venv/.test ## format, lint, types, and the direction of imports
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: .venv/.test ## times and memory, as ratios against a reference in the same run
	$(BIN)/hilum bench

clean: ## remove the environment and the caches; the state in var/ stays
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/.run: .venv/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	touch $@

.venv/.test: .venv/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[train,medmnist,postgresql,hl7,fhir,dev]'
	touch $@ .venv/.run

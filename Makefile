PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOWEST := .venv-lowest
# Constraints are given on every pip call: without them a far larger build of torch is fetched.
PIP := $(BIN)/python -m pip install --quiet -c constraints.txt
PIP_LOWEST := $(LOWEST)/bin/python -m pip install --quiet -c constraints-lowest.txt
# What meets another library: its rooms run with the lowest versions too.
MEETS := tests/video tests/encoders tests/features tests/network tests/answers tests/training \
	tests/export tests/cli tests/test_package.py

.PHONY: help demo test test-lowest check format install venv

help:
	@echo "make demo    set up .venv and run the demo, offline once installed"
	@echo "make test    set up .venv and run the whole test suite"
	@echo "make test-lowest  the tests that meet other libraries, with the lowest versions of these"
	@echo "make check   lint, formatting and types"
	@echo "make format  rewrite the code in the house's format"

demo: $(VENV)/.core
	$(BIN)/demr demo

test: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --doctest-modules src/demr tests

test-lowest: $(LOWEST)/.all
	OMP_NUM_THREADS=1 $(LOWEST)/bin/python -m pytest -n 2 -m "not slow" $(MEETS)

check: $(VENV)/.dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(VENV)/.dev
	$(BIN)/ruff check --fix-only
	$(BIN)/ruff format

install: $(VENV)/.dev

venv: $(BIN)/python

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# Stamps: a set-up is repeated only where what it was made from has changed.
$(VENV)/.core: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -e .
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -e '.[train,encoders,cluster,export,reference,dev]'
	@touch $(VENV)/.core $@

$(LOWEST)/.all: pyproject.toml constraints-lowest.txt
	test -x $(LOWEST)/bin/python || $(PYTHON) -m venv $(LOWEST)
	$(PIP_LOWEST) -e '.[train,encoders,cluster,export,test]'
	@touch $@

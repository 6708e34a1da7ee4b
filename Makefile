# Every target makes its own environment, .venv, and keeps it until what is installed there changes. What only tests and
# checks need is installed for them.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
DEVELOPS := $(VENV)/.develops

.PHONY: demo test test-gpu check bench clean

demo: $(INSTALLED)
	$(BIN)/ugsp demo

test: $(DEVELOPS)
	$(BIN)/python -m pytest

test-gpu: $(DEVELOPS)
	UGSP_REQUIRE_CUDA=1 $(BIN)/python -m pytest -m gpu

check: $(DEVELOPS)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(INSTALLED)
	$(BIN)/python benchmarks/speed.py

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis ugsp-demo

$(INSTALLED): setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(DEVELOPS): $(INSTALLED)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

# Every target makes its own environment, .venv, and keeps it until what is installed there changes.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test test-gpu check bench clean

demo: $(INSTALLED)
	$(BIN)/ugsp demo

test: $(INSTALLED)
	$(BIN)/python -m pytest

test-gpu: $(INSTALLED)
	UGSP_REQUIRE_CUDA=1 $(BIN)/python -m pytest -m gpu

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(INSTALLED)
	$(BIN)/python benchmarks/speed.py

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis ugsp-demo

$(INSTALLED): setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

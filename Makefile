# `make demo` and `make test` need Python 3.11+, make and git only; they set up VENV when it is missing.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
SETUP := $(VENV)/.installed

.PHONY: demo test test-all check bad-inputs clean

demo: $(SETUP)
	$(BIN)/fedpgp demo

test: $(SETUP)
	$(BIN)/python -m pytest -m "not slow"

test-all: $(SETUP)
	$(BIN)/python -m pytest

check: $(SETUP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bad-inputs: $(SETUP)
	FEDPGP_REWRITE_BAD_INPUTS=1 $(BIN)/python -m pytest tests/test_bad_inputs.py

$(SETUP): setup.cfg pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info

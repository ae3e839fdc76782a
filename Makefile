# `make test` and `make demo` need nothing but Python >= 3.11, pip, git and a C++ compiler.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help test demo docs lint install clean

help:
	@echo "make test   install into $(VENV), then lint, type-check and test (about 10 minutes on 2 cores)"
	@echo "make demo   install into $(VENV), then watch a small model read, answer, be corrected, sleep and forget (about a minute)"
	@echo "make docs   install into $(VENV), then build the documentation as a site in site/"
	@echo "make clean  remove $(VENV) and what the runs left"

install: $(STAMP)

# With the setuptools of the environment, so that a changed pyproject.toml needs the network only for what it adds.
$(STAMP): pyproject.toml constraints.txt
	@echo "installing into $(VENV) (about 2 minutes, once)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python >= 3.11 is needed, this is " + sys.version)'
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt torch 'setuptools>=77'
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-build-isolation --editable '.[dev]'
	@touch $(STAMP)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: $(STAMP)
	@echo "ruff, mypy and pytest: about 10 minutes on 2 cores"
	@$(MAKE) --no-print-directory lint
	$(BIN)/python -m pytest -n 2 --dist worksteal

demo: $(STAMP)
	@echo "a small model reads, answers, is corrected, sleeps, forgets and goes back: about a minute on 2 cores"
	@$(BIN)/circadia demo --out runs/demo

docs: $(STAMP)
	@echo "the documentation as a site: some seconds"
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict
	@echo "site/index.html"

clean:
	rm -rf $(VENV) runs site .pytest_cache .mypy_cache .ruff_cache

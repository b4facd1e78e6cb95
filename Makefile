# make        the list of commands
# make demo   from nothing to a compared result
# make test   everything that must hold
SHELL  := /bin/bash
BIN    := .venv/bin
PYTHON := $(shell for p in python3.11 python3 python; do \
  "$$p" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo "$$p"; break; }; done)
# The stamp's name holds a hash of what the environment was made from, so that a change of any of it, or of the place, makes a new one.
STAMP  := .venv/installed-$(shell { pwd; cat constraints.txt pyproject.toml; } | cksum | cut -d' ' -f1)
CODE   := nbs tests benchmarks .ci

.PHONY: help install demo test lint lab readme clean hooks
.DEFAULT_GOAL := help

help:  ## this list
	@echo "gti-nb: new tokens for a language model, placed well, and measured"
	@grep -E '^[a-z]+:.*##' Makefile | sed -E 's/:.*## /|/' | while IFS='|' read -r name text; do printf '  make %-8s %s\n' "$$name" "$$text"; done

install: $(STAMP)  ## .venv with the pinned packages (remade when constraints.txt or pyproject.toml change)

$(STAMP):
	@test -n "$(PYTHON)" || { echo "make: Python 3.11 or newer with venv and pip is needed, and neither python3.11, python3 nor python is that." \
	  "Install it (Debian, Ubuntu: apt-get install python3 python3-venv) or name one: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; exit 1; }
	@if test -e .venv; then echo "The environment in .venv was made for other pins or another place: making it again"; fi
	$(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(STAMP)  ## MovieLens-100K, SmolLM2-135M: mean start against grounded start; prints a table and the report's path
	$(BIN)/gti fetch
	$(BIN)/gti study studies/demo.yaml

lint: $(STAMP)  ## style, formatting and types
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/python .ci/typecheck.py

# Two notebooks at a time, one thread each: small models gain nothing from more, and two cores are what is promised.
test: lint  ## style, types, notebooks, pytest, sync checks, pipelines on tiny settings, the browser (skipped where there is no Chromium)
	OMP_NUM_THREADS=1 $(BIN)/nbdev_test --n_workers 2 --timing
	OMP_NUM_THREADS=2 $(BIN)/python -m pytest -q --durations=10 tests

lab: $(STAMP)  ## JupyterLab on the notebooks
	$(BIN)/jupyter lab nbs

readme: $(STAMP)  ## README.md and docs/rooms.md from the notebooks
	$(BIN)/python .ci/build_pages.py

clean: $(STAMP)  ## gti_nb/ from the notebooks, notebooks formatted and without stray metadata, generated pages: what the sync checks want
	$(BIN)/ruff check --fix $(CODE)
	$(BIN)/ruff format $(CODE)
	$(BIN)/nbdev_export
	$(BIN)/nbdev_clean
	$(BIN)/python .ci/build_pages.py

hooks: $(STAMP)  ## git hooks that do what `make clean` does, before every commit
	$(BIN)/pre-commit install

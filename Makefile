# RuneRogue. `make` alone lists the targets. Everything it installs goes into .venv, everything it keeps into var/.

SHELL := /bin/sh
.DEFAULT_GOAL := help
.PHONY: help run stop status demo test check bench lint format types clean

# The first Python here that is one of those the packages are for.
SUITS := import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do $$p -c '$(SUITS)' 2>/dev/null && { echo $$p; break; }; done)
UV_VERSION := 0.13.9
BIN := .venv/bin
# uv uses the environment made here, and no Python of its own.
export UV_PROJECT_ENVIRONMENT := .venv
export UV_PYTHON_DOWNLOADS := never
export VIRTUAL_ENV :=
# How many processes run the tests: one more than two cores, because the stories on real engines wait for much of their time.
WORKERS ?= 3
# Checks that start nothing still load the settings, which want a key.
KEY := $(if $(SECRET_KEY),$(SECRET_KEY),not-a-secret-only-for-checks-that-start-nothing-0123456789)

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: .venv/.synced-run ## set up what is missing, start everything, stay in the foreground
	@exec $(BIN)/python -m runerogue.stack run

stop: ## stop it, from another terminal
	@if [ -x $(BIN)/python ]; then exec $(BIN)/python -m runerogue.stack stop; else echo "RuneRogue is not running (nothing is installed)"; fi

status: ## show what runs
	@if [ -x $(BIN)/python ]; then exec $(BIN)/python -m runerogue.stack status; else echo "RuneRogue is not running (nothing is installed)"; fi

demo: .venv/.synced-run ## the same with Realm, a game service to improve, under load
	@exec $(BIN)/python -m runerogue.stack run --demo

test: .venv/.synced-all ## run the whole test suite on private engines (ARGS="-k name" for a part)
	@exec $(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup $(ARGS)

check: .venv/.synced-all ## everything that must hold before a change lands: style, then types, layers and tests
	@echo "· Style"; $(BIN)/ruff check . && $(BIN)/ruff format --check .
	@echo "· Tests"; exec $(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup $(ARGS)

bench: .venv/.synced-all ## measure, against targets and peers (ONLY=pattern for a part)
	@exec $(BIN)/python -m tests.bench.run $(ONLY)

lint: .venv/.synced-all ## style and types only
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && SECRET_KEY='$(KEY)' $(BIN)/mypy

format: .venv/.synced-all ## put the code in order
	@$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

clean: ## remove the virtual environment and caches; var/ (your data) stays
	@rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache

# -- setting up ------------------------------------------------------------------------------------------------------

.venv/.python:
	@[ -n "$(PYTHON)" ] && $(PYTHON) -c '$(SUITS)' 2>/dev/null || { \
	  echo "RuneRogue needs Python 3.11, 3.12 or 3.13, and here is $$($(or $(PYTHON),python3) --version 2>&1 | head -n 1). Install one, or name it: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@echo "· Making .venv with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv .venv || { rm -rf .venv; \
	  echo "Python's venv module does not work here. On Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@touch $@

.venv/.uv: .venv/.python
	@if uv --version >/dev/null 2>&1; then ln -sf "$$(command -v uv)" $(BIN)/uv; \
	else echo "· Installing uv $(UV_VERSION) into .venv"; $(BIN)/python -m pip install --quiet --disable-pip-version-check "uv==$(UV_VERSION)"; fi
	@touch $@

# Stamped: as long as the lock is older than the stamp, a second time costs nothing.
.venv/.synced-run: .venv/.uv pyproject.toml uv.lock
	@echo "· Installing packages from uv.lock (once)"
	@$(BIN)/uv sync --frozen --inexact --quiet
	@touch $@

.venv/.synced-all: .venv/.uv pyproject.toml uv.lock
	@echo "· Installing packages from uv.lock, with those for development (once)"
	@$(BIN)/uv sync --frozen --inexact --all-groups --quiet
	@touch .venv/.synced-run $@

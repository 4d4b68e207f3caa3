# Every target does its own set-up. `make help` lists them.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
RUN    := $(VENV)/.run
DEV    := $(VENV)/.dev
DOCS   := $(VENV)/.docs
EXTRA  := $(VENV)/.examples
FUZZ   := $(VENV)-fuzz
ARGS   ?=
export PYTHONUNBUFFERED := 1

##@ Use it

.PHONY: demo dev stack
demo: $(RUN)  ## The whole story live: services, eight clients, every receipt (ARGS=--once: by itself; STACK=1: on real servers)
	@$(if $(STACK),bash deploy/stack.sh run $(BIN)/heliograph demo --stack $(ARGS),$(BIN)/heliograph demo $(ARGS))

dev: $(RUN)  ## Every service in one process on an embedded PostgreSQL, without demo clients
	@$(BIN)/heliograph dev $(ARGS)

stack: $(RUN)  ## Each service as its own process on a real PostgreSQL and a real Kafka; Ctrl-C stops all
	@bash deploy/stack.sh up

##@ Work on it

.PHONY: test check lint types imports soak fuzz bench bench-sync reference docs setup servers lock clean help
test: setup  ## Install what the tests need, then run everything but `make soak` (ARGS=… goes to pytest)
	@$(MAKE) --no-print-directory check
	$(BIN)/pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder --max-worker-restart 4 -m 'not slow' $(ARGS)

check: lint types imports  ## Formatting, lint, types, import contracts

lint: $(DEV)
	$(BIN)/ruff format --check -q .
	$(BIN)/ruff check -q .

types: $(DEV)
	$(BIN)/mypy
	$(BIN)/mypy handbook

imports: $(DEV)
	$(BIN)/lint-imports --no-cache

soak: setup  ## Slow runs: minutes of faults and load
	$(BIN)/pytest -m slow -p no:randomly $(ARGS)

fuzz: $(FUZZ)/.done  ## Coverage-guided fuzzing of the parsers that face outside (RUNS=100000 each, TARGET=messages for one)
	RUNS=$(or $(RUNS),100000) PYTHONPATH=src $(FUZZ)/bin/python -m tests.fuzz $(TARGET)

bench: setup  ## Measure propagation on both stacks; writes docs/benchmarks.md
	$(BIN)/python -m bench $(ARGS)

bench-sync: setup  ## Measure the sync engine beside a C loop and others of its kind (ARGS='cpu --clients 1000 --dry': one row, small)
	$(BIN)/python -m bench sync $(ARGS)

reference: $(DEV)  ## Write docs/reference anew, from what the code declares
	$(BIN)/python -m handbook

docs: $(DOCS)  ## Build the documentation site into build/site; a broken link fails it
	@npm ci --prefix handbook --silent --no-fund --no-audit || echo "docs: without npm, diagrams are shown as text" >&2
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

setup: $(DEV) $(DOCS) $(EXTRA) servers  ## Python packages and the real servers that tests use

servers:
	@bash deploy/servers.sh

lock: $(DEV)  ## Pin dependencies anew, with hashes
	$(BIN)/pip-compile -q --upgrade --generate-hashes --no-emit-options --no-header --allow-unsafe --strip-extras \
	    --all-build-deps --extra server --extra embedded --extra dev -o requirements/dev.txt pyproject.toml
	$(BIN)/pip-compile -q --generate-hashes --no-emit-options --no-header --allow-unsafe --strip-extras \
	    --all-build-deps --extra server --extra embedded -c requirements/dev.txt -o requirements/run.txt pyproject.toml
	$(BIN)/pip-compile -q --generate-hashes --no-emit-options --no-header --allow-unsafe --strip-extras \
	    --all-build-deps --extra docs -c requirements/dev.txt -o requirements/docs.txt pyproject.toml
	$(BIN)/pip-compile -q --generate-hashes --no-emit-options --no-header --allow-unsafe --strip-extras \
	    --all-build-deps --extra examples -c requirements/dev.txt -o requirements/examples.txt pyproject.toml

clean:  ## Remove what was built or installed here (not the data of `make demo`)
	rm -rf $(VENV) $(FUZZ) build dist .cache .stack src/*.egg-info

help:  ## This list
	@awk 'BEGIN {FS = ":.*##"} /^##@/ {printf "\n%s\n", substr($$0, 5)} /^[a-z-]+:.*##/ {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# --- set-up; stamps are newer than what they were made from ---

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Heliograph needs Python 3.11 or newer; set PYTHON=…")'
	$(PYTHON) -m venv $(VENV)

$(RUN): requirements/run.txt pyproject.toml | $(BIN)/python
	$(BIN)/pip install -q --disable-pip-version-check --require-hashes -r requirements/run.txt
	$(BIN)/pip install -q --disable-pip-version-check --no-build-isolation --no-deps -e .
	@touch $@

$(DEV): requirements/dev.txt $(RUN)
	$(BIN)/pip install -q --disable-pip-version-check --require-hashes -r requirements/dev.txt
	@touch $@

$(DOCS): requirements/docs.txt $(DEV)
	$(BIN)/pip install -q --disable-pip-version-check --require-hashes -r requirements/docs.txt
	@touch $@

$(FUZZ)/.done: requirements/run.txt requirements/fuzz.txt
	$(PYTHON) -m venv $(FUZZ)
	$(FUZZ)/bin/pip install -q --disable-pip-version-check --require-hashes -r requirements/run.txt
	$(FUZZ)/bin/pip install -q --disable-pip-version-check --require-hashes -r requirements/fuzz.txt
	@touch $@

$(EXTRA): requirements/examples.txt $(DEV)
	$(BIN)/pip install -q --disable-pip-version-check --require-hashes -r requirements/examples.txt
	@touch $@

# Every target sets up what it needs in .venv, once; it does so again only when the pinned
# requirements or pyproject.toml change. After that nothing here needs the network
# (the Kafka tests fetch their broker through Maven, once).

PYTHON ?= python3
UV ?= uv

VENV := .venv
BIN := $(VENV)/bin
# Tests mostly wait: for processes, brokers, disks. The long files come first, each in one process.
PYTEST := $(BIN)/pytest --numprocesses=auto --maxprocesses=4 --dist=loadfile --no-loadscope-reorder
# Measuring doubles the time of a test: `make test` measures those that reach all of the core.
UNIT := tests/unit
OF_CORE := tests/unit/core/ tests/unit/engine/ tests/unit/index/ $(wildcard tests/unit/test_*.py)
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
RUNTIME := $(VENV)/.runtime-installed
DEV := $(VENV)/.dev-installed
BENCH := $(VENV)/.bench-installed

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help demo test check coverage measured bench fuzz chaos kill-exports kill-desk fuzz-http screenshots simulate format lock clean distclean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

demo: $(RUNTIME) ## stream a made-up programme, cut and verify an export; then serve the console: make demo STAY=1
	@$(BIN)/buddy demo $(if $(STAY),--stay)

test: $(DEV) ## everything: lint, types, all tests (those on Kafka where a broker can be had)
	$(BIN)/ruff check --quiet .
	$(BIN)/ruff format --check --quiet .
	@# What the tests of the core reach is held; what is reached of the rest, `make coverage` shows.
	@BUDDY_COVERED=worker/core $(MAKE) --no-print-directory measured UNIT="$(OF_CORE)"
	@# Types beside the others, which wait for processes most of the time: so there are four
	@# processes, on two cores too. What mypy says comes last. The proofs' samples take longest, so
	@# they begin.
	@$(BIN)/mypy --no-error-summary > $(VENV)/types.log 2>&1 & types=$$!; \
	$(PYTEST) --numprocesses=4 tests/proofs $(filter-out tests/unit/ tests/proofs/ %__pycache__/,$(wildcard tests/*/)) \
		$(filter-out $(OF_CORE) %__pycache__/,$(wildcard tests/unit/*/)); tests=$$?; \
	wait $$types || { cat $(VENV)/types.log >&2; exit 1; }; \
	exit $$tests

check: $(DEV) ## lint, types and unit tests but for the thorough ones, under a minute: before every commit
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	@BUDDY_HYPOTHESIS=quick $(PYTEST) -m 'not thorough' --quiet tests/unit

coverage: measured ## branches of schemas/ and worker/core/ that the unit tests reach: all; of the rest the share
	@echo "worker/ without its core, by unit tests alone: $$($(BIN)/coverage report --omit 'schemas/*,worker/core/*' --format=total) %"

# The unit tests; each of pytest's processes measures itself.
measured: $(DEV)
	@rm -f .coverage .coverage.*
	@COVERAGE_PROCESS_START=$(CURDIR)/pyproject.toml $(PYTEST) --quiet $(UNIT) > $(VENV)/unit.log 2>&1 \
		|| { cat $(VENV)/unit.log >&2; exit 1; }
	@tail -n 1 $(VENV)/unit.log
	@$(BIN)/coverage combine --quiet
	@$(BIN)/coverage report --include 'schemas/*,worker/core/*' --fail-under=100

bench: $(BENCH) ## measure records and rows a second on this machine: make bench BENCH_OPTIONS="--only writers"
	@$(BIN)/python -m tests.bench $(BENCH_OPTIONS)

fuzz: $(DEV) ## the property-based tests with many more examples
	@BUDDY_HYPOTHESIS=long $(BIN)/pytest --timeout=3600 tests/unit tests/contract

chaos: $(DEV) ## processes and broker killed under a stream, then an independent checker: make chaos ROUNDS=200 SEED=1
	@$(BIN)/python -m tests.proofs.chaos --rounds $(or $(ROUNDS),10) --seed $(or $(SEED),1) $(CHAOS)

kill-exports: $(DEV) ## a sink killed at every stage of an export: make kill-exports ROUNDS=100 SEED=1
	@$(BIN)/python -m tests.proofs.kill_exports --rounds $(or $(ROUNDS),100) --seed $(or $(SEED),1)

kill-desk: $(DEV) ## rejections summary and replay killed while they work: make kill-desk ROUNDS=50 SEED=1
	@$(BIN)/python -m tests.proofs.kill_desk --rounds $(or $(ROUNDS),50) --seed $(or $(SEED),1)

fuzz-http: $(DEV) ## the HTTP API fuzzed from its own description: make fuzz-http SECONDS=600 SEED=1
	@$(BIN)/python -m tests.proofs.fuzz_http --seconds $(or $(SECONDS),600) --seed $(or $(SEED),1)

screenshots: $(DEV) ## pictures of the console for README and docs (needs Chromium): make screenshots MINUTES=10
	@$(BIN)/python -m tests.screenshots --minutes $(or $(MINUTES),10)

simulate: $(DEV) ## real workers in virtual time, on a broker in memory: make simulate SEEDS=0:10000
	@$(BIN)/python -m tests.proofs.simulation --seeds $(or $(SEEDS),0:10000)

format: $(DEV) ## format the code and mend what lint can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Keeps the pins it can; `make lock UPGRADE=--upgrade` moves them all. Hashes of every platform are
# listed, so that the files serve any machine; uv writes no index and no path into them.
COMPILE = $(UV) pip compile pyproject.toml --quiet --universal --python-version 3.11 \
	--generate-hashes --no-annotate --custom-compile-command 'make lock' $(UPGRADE)

lock: ## pin the requirements anew from pyproject.toml (needs uv)
	@command -v $(UV) >/dev/null || { echo "make lock needs uv: pip install uv (in a venv of its own), then make lock UV=that-venv/bin/uv" >&2; exit 1; }
	$(COMPILE) --extra build --extra dev --output-file requirements-dev.txt
	$(COMPILE) --extra build --constraint requirements-dev.txt --output-file requirements.txt
	$(COMPILE) --extra bench --constraint requirements-dev.txt --output-file requirements-bench.txt

clean: ## remove what demo and tests left (not .venv)
	rm -rf .coverage .coverage.* buddy-demo .hypothesis .mypy_cache .pytest_cache .ruff_cache build dist
	@find . -path ./$(VENV) -prune -o -path ./.git -prune -o -type d -name __pycache__ -exec rm -rf {} +

distclean: clean ## remove .venv, .nox and downloads as well
	rm -rf $(VENV) .nox .cache buddy_stream.egg-info

# --- set-up -----------------------------------------------------------------------------------

# Without build isolation, since setuptools is among the pinned requirements: pip would fetch
# another one, unpinned.
INSTALL_SELF = $(PIP) install --no-deps --no-build-isolation --editable .

# `pip` is the last thing that venv makes: where it is missing, an earlier set-up was interrupted.
define make_venv
@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) not found: Buddy Stream needs Python 3.11 or newer; name yours with make PYTHON=/path/to/python" >&2; exit 1; }
@test -x $(BIN)/pip || $(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Buddy Stream needs Python 3.11 or newer, and $(PYTHON) is %d.%d; name another one with make PYTHON=python3.12" % sys.version_info[:2])'
@test -x $(BIN)/pip || $(PYTHON) -m venv --clear $(VENV)
endef

$(RUNTIME): requirements.txt pyproject.toml
	$(make_venv)
	@echo "Installing what Buddy Stream needs into $(VENV) ..."
	@$(PIP) install --require-hashes -r requirements.txt
	@$(INSTALL_SELF)
	@touch $@

# The development requirements contain the others, so this one settles both.
$(DEV): requirements-dev.txt requirements.txt pyproject.toml
	$(make_venv)
	@echo "Installing what Buddy Stream and its tests need into $(VENV) ..."
	@$(PIP) install --require-hashes -r requirements-dev.txt
	@$(INSTALL_SELF)
	@touch $(RUNTIME) $@

# A second step, since it is as large as all else: tests and CI do without.
$(BENCH): requirements-bench.txt $(DEV)
	@echo "Installing the libraries to compare with into $(VENV) ..."
	@$(PIP) install --require-hashes -r requirements-bench.txt
	@touch $@

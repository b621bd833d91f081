# Everything here needs make and a Python from 3.11 on; the rest is installed into $(VENV).

PYTHON ?= python3.11
VENV ?= .venv
WORKERS ?= 2
ARGS ?=

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install test lint check demo bench soak soak-durable clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  \033[1mmake %-12s\033[0m %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@printf '\n  Variables: PYTHON=%s VENV=%s WORKERS=%s DEMO_SECONDS=n ARGS="..." (test, demo, bench, soak, soak-durable)\n' \
		'$(PYTHON)' '$(VENV)' '$(WORKERS)'

# A pip older than 25.1 knows no dependency groups.
$(STAMP): pyproject.toml
	$(PYTHON) -m venv '$(VENV)'
	'$(BIN)/python' -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	'$(BIN)/python' -m pip install --quiet -e '.[dev]' --group test --group lint
	@touch '$@'

install: $(STAMP) ## Install Jetcron and its tools into .venv

test: $(STAMP) ## Run every test (ARGS="-k name tests/unit" for some)
	'$(BIN)/pytest' -n $(WORKERS) --dist worksteal $(ARGS)

lint: $(STAMP) ## Check style, format, types and the direction of imports
	'$(BIN)/ruff' check
	'$(BIN)/ruff' format --check
	'$(BIN)/mypy'
	'$(BIN)/lint-imports'

check: lint test ## Lint and test: what has to pass before a merge

demo: $(STAMP) ## Run the example with everything it needs; Ctrl-C ends it
	'$(BIN)/python' -m examples.demo $(if $(DEMO_SECONDS),--seconds $(DEMO_SECONDS)) $(ARGS)

bench: $(STAMP) ## Measure throughput and precision on this machine
	'$(BIN)/python' -m benchmarks $(ARGS)

soak: $(STAMP) ## Run for long, killing things, and count what was lost or doubled
	'$(BIN)/python' -m benchmarks.soak $(ARGS)

soak-durable: $(STAMP) ## The same for durable runs: random workflows, whose results and journals must be right
	'$(BIN)/python' -m benchmarks.durable_soak $(ARGS)

clean: ## Remove everything made here, .venv too
	rm -rf '$(VENV)' dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find actors protocol tests examples benchmarks -name __pycache__ -prune -exec rm -rf {} +

# `make` lists the targets. Every recipe is a command that can be typed as well.
.DEFAULT_GOAL := help
PYTHON ?= python
.PHONY: help install test test-slow test-gpu lint format types check wheel ci mini clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: ## Install the package as it is edited, with the tools of a developer
	$(PYTHON) -m pip install -e '.[dev]'

test: ## Run the default tests (minutes; no network, no GPU)
	$(PYTHON) -m pytest

test-slow: ## Run the tests that train (many minutes)
	$(PYTHON) -m pytest -n 0 -m slow

test-gpu: ## Run the tests that need a CUDA device
	$(PYTHON) -m pytest -n 0 -m gpu

lint: ## Check style and format without changing anything
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .

format: ## Format, and mend what the linter can mend
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .

types: ## Check the types
	$(PYTHON) -m mypy

check: lint types test ## Everything a change must pass, in this environment

wheel: ## Build the source distribution and the wheel into dist/
	$(PYTHON) -m build

ci: ## Everything, in an environment made for it (what .ci/run does)
	.ci/run

mini: ## Train, evaluate and export on the embedded world
	tga-train +experiment=mini

clean: ## Remove caches and builds (not outputs/)
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +

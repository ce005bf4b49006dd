# What people type. Everything is installed into .venv; nothing outside the checkout is changed, except that
# the test cluster keeps what it builds in ~/.cache/rollbook (see tests/cluster/README.md).

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The current directory has packages of its own (demo, and the tests' support).
export PYTHONPATH := $(CURDIR)/tests/cluster:$(CURDIR)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help demo test test-quick test-real cluster cluster-down lint format bench image requirements clean

help: ## say what there is
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' $(MAKEFILE_LIST) | column -t -s '|'

demo: $(VENV)/.demo ## the main job on this machine: registry, two instances, a caller (DEMO_SECONDS=60 ends by itself)
	@$(BIN)/python -m demo

test: $(VENV)/.dev ## everything, on a real Kubernetes too (ROLLBOOK_CLUSTER=auto|kind|testbed|kubeconfig|none)
	@$(BIN)/pytest tests

test-real: $(VENV)/.dev ## against real programs on this machine: a registry, Prometheus, a fuzzer of /openapi.json
	@$(BIN)/pytest tests/integration

test-quick: $(VENV)/.dev ## what needs neither root nor a cluster, in under a minute
	@$(BIN)/pytest tests/unit -q -x -n auto

cluster: $(VENV)/.dev ## a real Kubernetes with Rollbook and a sample application, to try
	@$(BIN)/python -m playground up

cluster-down: $(VENV)/.dev ## take it down again
	@$(BIN)/python -m playground down

lint: $(VENV)/.dev ## format, lint, types, and who may import whom
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: $(VENV)/.dev ## format and mend what can be mended
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

bench: $(VENV)/.dev ## measure what the pages quote, each beside its limit (build/benchmarks/*.json)
	@$(BIN)/python -m benchmarks

image: $(VENV)/.dev ## build the three images for the test cluster
	@$(BIN)/python -m clusters images

requirements: $(VENV)/.dev ## pin again what pyproject.toml asks for
	@$(BIN)/python -m pip install -q uv
	@for part in registry sidecar operator demo dev; do \
	  $(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header \
	    --no-emit-index-url --no-emit-find-links --extra $$part pyproject.toml -o requirements/$$part.txt || exit 1; \
	done

clean: ## remove what was installed and built here
	rm -rf $(VENV) build dist

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Rollbook needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Set PYTHON=/path/to/python3.11.")'
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: requirements/demo.txt pyproject.toml | $(VENV)/bin/python
	@echo "installing what the demonstration needs into $(VENV) ..."
	@test -e $(VENV)/.dev || $(BIN)/python -m pip install -q --require-hashes -r requirements/demo.txt
	@$(BIN)/python -m pip install -q --no-deps -e .
	@touch $@

$(VENV)/.dev: requirements/dev.txt pyproject.toml | $(VENV)/bin/python
	@echo "installing what development needs into $(VENV) ..."
	@$(BIN)/python -m pip install -q --require-hashes -r requirements/dev.txt
	@$(BIN)/python -m pip install -q --no-deps -e .
	@touch $@

# `make` explains itself. Nothing here needs root; `make test` as root installs the servers that the tests need.

UV ?= uv
VENV := .venv
BIN := $(VENV)/bin
PLUGINS := $(sort $(dir $(wildcard plugins/*/setup.cfg)))
ARGS ?=

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo status test gate soak matrix lint docs bench lock clean

help: ## Say what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
	@echo
	@echo "  PYTHON=python3.12 make setup   another interpreter (3.11 or newer)"
	@echo "  make test ARGS='-k limits -x'  what pytest is to be told"
	@echo "  make bench BENCH=catalog       one bench, ARGS='--help' for its sizes"

setup: ## Make .venv with stellerd, the three plugins and all tools, at pinned versions
	@PYTHON="$(PYTHON)" VENV="$(VENV)" scripts/setup $(PLUGINS)

demo: setup ## Run the daemon with the vendor's sandbox, on files only; Ctrl-C ends it
	@mkdir -p .demo
	@echo "stellerd runs in the foreground; what it does lands in .demo/. In another terminal:"
	@echo "  make status                                          what runs, what is next"
	@echo "  $(BIN)/stellerd -c etc/demo.toml history          every run and its reason"
	@echo "  $(BIN)/stellerd -c etc/demo.toml trigger brand_sync"
	@echo "Ctrl-C ends it; make clean forgets it."
	@exec $(BIN)/stellerd -c etc/demo.toml run

status: setup ## Show the jobs of the running demo
	@exec $(BIN)/stellerd -c etc/demo.toml status

test: setup ## Run all tests, against a real PostgreSQL and RabbitMQ
	@scripts/servers-or-say
	@$(BIN)/python -m pytest $(ARGS)

gate: setup ## Run what a change has to pass beside the tests: the service under a booted systemd
	@scripts/servers-or-say
	@$(BIN)/python -m pytest -m gate $(ARGS)

soak: setup ## Run the long forms of the fault tests
	@$(BIN)/python -m pytest -m soak $(ARGS)

matrix: setup ## Try it on fresh Debians, as root and as a user (needs root and debootstrap; ARGS='--help')
	@$(BIN)/python scripts/matrix $(ARGS)

lint: setup ## Check style, types and layers
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache

docs: setup ## Write what is derived from the code: etc/stellerd.toml, docs/reference
	@$(BIN)/python scripts/reference.py

bench: setup ## Measure one claim (BENCH=name), or list the benches
	@PYTHON="$(BIN)/python" scripts/bench "$(BENCH)" $(ARGS)

lock: ## Pin the newest versions: constraints.in becomes constraints.txt (needs uv)
	@UV="$(UV)" scripts/lock

clean: ## Remove .venv, the demo's state and whatever tools left behind
	@rm -rf $(VENV) .demo build dist .mypy_cache .ruff_cache .hypothesis .import_linter_cache .coverage .coverage.*
	@find . -name __pycache__ -prune -exec rm -rf {} +
	@find . -name '*.egg-info' -prune -exec rm -rf {} +

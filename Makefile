# The project's commands. `make test` and `make demo` need Python 3.11 or later and nothing else.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
CACHE := $(if $(AIRGAP_CACHE),$(AIRGAP_CACHE),$(if $(XDG_CACHE_HOME),$(XDG_CACHE_HOME),$(HOME)/.cache)/harbor-airgap)
export AIRGAP_CACHE := $(CACHE)
export AIRGAP_SHARED ?= $(abspath ../shared)
WORKERS ?= 2
FUZZ_SECONDS ?= 60

.PHONY: help install test lint unit integration programs site fuzz bench demo lock-requirements loader clean

help: ## Show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

install: $(STAMP) ## Install the project and what its development needs into .venv

$(STAMP): requirements-dev.txt requirements-programs.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements-programs.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

test: lint unit ## Lint, types, import rules, bandit, unit, attack and contract tests

lint: $(STAMP) ## ruff, mypy strict, import rules, bandit
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/bandit --quiet --recursive --configfile pyproject.toml bundler installer

unit: $(STAMP)
	$(BIN)/pytest -n $(WORKERS) tests/unit tests/attacks tests/contract -m "not integration"

integration: $(STAMP) ## Real peers: needs root and the Debian packages that .ci/run names
	$(BIN)/pytest -n $(WORKERS) --dist loadfile tests/integration tests/contract -m integration

programs: $(STAMP) ## Build ahead what the tiers build when they need it (Go)
	$(BIN)/python -m tests.programs
	$(BIN)/python -m tests.site.build

site: $(STAMP) ## A real Kubernetes in a namespace without a route out: needs root and Go
	$(BIN)/pytest -n $(WORKERS) --dist loadfile tests/site -m site

fuzz: $(STAMP) ## Look for inputs that bring a reader down; FUZZ_SECONDS for each, Linux on x86-64
	$(BIN)/python -m tests.fuzz --seconds $(FUZZ_SECONDS)

bench: $(STAMP) ## Measure against skopeo, oras and docker-registry; results in docs/benchmarks.md
	$(BIN)/python -m tests.bench $(BENCH)
	$(BIN)/python -m tests.bench.trust $(filter --quick,$(BENCH))

demo: $(STAMP) ## The whole way on this machine: upstream, lock, bundle, verify, serve, render
	$(BIN)/python -m tests.demo

lock-requirements: $(STAMP) ## Pin the newest versions of what requirements-dev.in names
	$(BIN)/pip-compile --quiet --upgrade --generate-hashes --strip-extras --no-header --allow-unsafe \
	  --no-emit-index-url --no-emit-find-links -o requirements-dev.txt requirements-dev.in

LOADER := -O2 -std=gnu11 -Wall -Wextra -Werror -nostdlib -static -no-pie -fno-pie -ffreestanding \
  -fno-builtin -fno-stack-protector -fno-unwind-tables -fno-asynchronous-unwind-tables -fno-ident \
  -fno-tree-loop-distribute-patterns -s \
  -Wl,--build-id=none -Wl,-z,noseparate-code -Wl,-z,noexecstack

loader: ## Compile the installer's first programs anew (Debian 12: gcc gcc-aarch64-linux-gnu)
	gcc $(LOADER) -o bundler/loader/unpack-x86_64 bundler/loader/unpack.c
	aarch64-linux-gnu-gcc $(LOADER) -o bundler/loader/unpack-aarch64 bundler/loader/unpack.c

clean: ## Remove what was installed and built here
	rm -rf $(VENV) dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

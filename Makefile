# Every task of the project. CI, hooks and people all call these targets.
#
# Variables: PYTHON (the Python to start from), TORCH_PIP_ARGS (pip's arguments for torch), ABYSSAL_TEST_PROFILE (fast
# or full), ABYSSAL_CORPORA (a folder of text files for the tokenizer's tests), and the runners of test-tiers.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
export PYTHON VENV TORCH_PIP_ARGS

RUST_SOURCES := Cargo.toml Cargo.lock $(shell find rust -name '*.rs' -o -name Cargo.toml)
TIER_CRATES := -p abyssal-routing -p abyssal-quant -p abyssal-kernels
THREAD_CRATES := $(TIER_CRATES) -p abyssal-kvcache -p abyssal-tokenizer

.PHONY: help
help: ## List the targets
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "make %-20s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# Stamps live in the environment, so that removing it removes them.
PACKAGES := $(VENV)/packages-installed
CORE := $(VENV)/core-built

$(PACKAGES): pyproject.toml scripts/setup.sh scripts/requirements.py
	@scripts/setup.sh packages
	@touch $@

$(CORE): $(PACKAGES) $(RUST_SOURCES)
	@scripts/setup.sh core
	@touch $@

.PHONY: setup build
setup: $(PACKAGES) $(CORE) ## Make the environment: Python packages and the compiled extension
build: $(CORE) ## Compile the extension module into python/abyssal

.PHONY: demo
demo: build ## Show the package at work with the bundled model
	@$(BIN)/abyssal demo

.PHONY: test
test: build ## Run every test of Rust and Python
	cargo test --workspace --locked --quiet
	$(BIN)/pytest --quiet
	@scripts/left_out.sh

.PHONY: test-tiers
test-tiers: build ## Run the Rust tests on processors this machine lacks (AVX512_RUNNER, AVX2_RUNNER, SSE_RUNNER, NEON_TEST)
	@scripts/test_tiers.sh $(TIER_CRATES)

.PHONY: test-threads
test-threads: ## Run the tests that share data between threads with ThreadSanitizer
	@scripts/test_threads.sh $(THREAD_CRATES)

.PHONY: test-oldest-torch
test-oldest-torch: build ## Run the binding's tests on torch 2.8, in an environment of its own (3 GB to download)
	@scripts/test_oldest_torch.sh

.PHONY: lint
lint: build ## Check formatting, clippy, ruff, mypy and the stubs
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked --quiet -- -D warnings
	$(BIN)/ruff check --quiet
	$(BIN)/ruff format --check --quiet
	$(BIN)/mypy
	$(BIN)/stubtest abyssal._core

.PHONY: format
format: ## Format Rust and Python
	cargo fmt --all
	$(BIN)/ruff check --fix --quiet
	$(BIN)/ruff format --quiet

.PHONY: bench bench-check
bench: build ## Time the operations in Rust (criterion) and Python (pytest-benchmark)
	cargo bench -p abyssal-benches --locked
	$(BIN)/pytest benches -o addopts=--import-mode=importlib --benchmark-only
bench-check: build ## Run every bench once, as a test of its result
	cargo bench -p abyssal-benches --locked --quiet -- --test
	$(BIN)/pytest benches -o addopts=--import-mode=importlib --benchmark-disable --quiet

.PHONY: docs
docs: build ## Make the README's picture again from the demo
	$(BIN)/abyssal demo --record docs/demo.svg

.PHONY: wheel
wheel: build ## Build the wheel into dist/ and check its tag, its ABI and its size
	@$(BIN)/python scripts/requirements.py wheel >$(VENV)/wheel-requirements.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement $(VENV)/wheel-requirements.txt
	rm -rf dist
	$(BIN)/maturin build --release --locked --out dist
	$(BIN)/auditwheel show dist/*.whl
	$(BIN)/abi3audit --strict --summary dist/*.whl
	@ls -l dist/*.whl

.PHONY: model
model: build ## Train the bundled model again (at most 90 minutes on two cores)
	$(BIN)/abyssal train --recipe king-james --out build/king_james

.PHONY: clean
clean: ## Remove what was built (the virtual environment stays)
	rm -rf target dist $(CORE) python/abyssal/_core*.so

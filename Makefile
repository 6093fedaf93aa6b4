# The few commands people type; `make` alone lists them. On the command line: make setup VENV=/somewhere PYTHON=python3.12

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo test test-fast test-all test-newer lint format bench docs clean

VENV ?= .venv
# The first one that is new enough and can make virtual environments.
PYTHON ?= $(shell for p in python3.11 python3.12 python3; do \
	$$p -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN := $(VENV)/bin
CODE := platform jobs tests # users may keep scripts of their own beside these
# Without isolation an old pip builds deepspeed with whatever setuptools is there.
INSTALL = $(BIN)/python -m pip install --quiet --no-compile --use-pep517
READY := $(VENV)/.ready

# torch==X from PyPI brings gigabytes of CUDA on Linux, with a GPU or without. A build marked +cpu is not on PyPI, so that
# asking for it fails before anything is loaded. TORCH_INDEX: an index to take torch from in place of the usual ones.
TORCH_VERSION := $(shell sed -n 's/^torch==//p' constraints.txt)
TORCH ?= torch==$(TORCH_VERSION)$(if $(filter Linux,$(shell uname -s)),$(shell nvidia-smi -L >/dev/null 2>&1 || echo +cpu))
TORCH_INDEX ?=
CPU_INDEX := https://download.pytorch.org/whl/cpu

help: ## list these commands
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 11

setup: $(READY) ## make the virtual environment (once; again after a change of the dependencies)

$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "No Python of 3.11 or newer with venv found; install one (Debian: apt install python3.11-venv) or type: make setup PYTHON=/path/to/python3.11" >&2; exit 1; }
	@command -v g++ >/dev/null || echo "Note: no g++ found; parts of DeepSpeed that are compiled on first use will not work."
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	$(if $(findstring +cpu,$(TORCH)),$(torch_for_cpu),$(torch_as_asked))
	$(INSTALL) --constraint constraints.txt --editable '.[all,dev]'
	@# On all cores, and where PYTHONDONTWRITEBYTECODE is set, too: processes start twice as fast. Some files are for other Pythons.
	@$(BIN)/python -m compileall -q -j 0 $(VENV)/lib >/dev/null 2>&1 || true
	@$(BIN)/python -c 'import torch; print("Ready: torch", torch.__version__, "with", torch.cuda.device_count(), "GPUs")'
	@touch $@

torch_from = $(INSTALL) --no-deps '$(TORCH)' $(addprefix --index-url ,$(1))
torch_as_asked = $(call torch_from,$(TORCH_INDEX))
define torch_for_cpu
@echo "No NVIDIA GPU here: $(TORCH)"
@$(torch_as_asked) \
	|| { echo "Not found there; looking at $(CPU_INDEX)"; $(call torch_from,$(CPU_INDEX)); } \
	|| { printf '%s\n' "" "No build of $(TORCH) found. A CUDA build is not installed on a machine without an NVIDIA GPU. Type one of:" \
	"  make setup TORCH_INDEX=<an index of CPU builds, for example a mirror of $(CPU_INDEX)>" \
	"  make setup TORCH=torch==$(TORCH_VERSION)   (whatever build the usual index has)" >&2; exit 1; }
endef

demo: setup ## distil a small model, from shards to pictures, on this machine
	$(BIN)/python jobs/demo.py

# Second proofs of what another test has shown are for `make test-all`; GPU tests are asked for with `pytest -m gpu`.
PYTEST := $(BIN)/python -m pytest --durations 10
FIRST := -m 'not gpu and not second'
# Tests of one process use one core each: two at a time, whose threads would be in each other's way.
TWO := OMP_NUM_THREADS=1 $(PYTEST) --numprocesses 2 --dist loadfile
# Tests on Ray wait for processes to start and to end for the most part: two clusters side by side, each with its own.
RAY := $(TWO) --no-loadscope-reorder

test-fast: lint ## lint, unit and contract tests: about 5 minutes on two cores
	$(TWO) $(FIRST) tests/unit tests/contract

test: lint ## what CI runs: lint and all tests but second proofs of the same: about 21 minutes on two cores
	$(TWO) $(FIRST) tests/jobs tests/studies tests/unit tests/contract
	$(RAY) $(FIRST) tests/cluster

test-all: lint docs test-newer ## lint, documentation and all tests that need no GPU, and unit tests on a newer Python
	$(TWO) tests/jobs tests/studies tests/unit tests/contract
	$(RAY) tests/cluster

NEWER := python3.12
test-newer: ## unit and contract tests on Python 3.12, in a virtual environment of its own
	@command -v $(NEWER) >/dev/null || { echo "No $(NEWER) found; name a newer one: make test-newer NEWER=/path/to/python3.12" >&2; exit 1; }
	$(MAKE) setup VENV=$(VENV)-newer PYTHON=$(NEWER)
	OMP_NUM_THREADS=1 $(VENV)-newer/bin/python -m pytest --numprocesses 2 --dist loadfile $(FIRST) tests/unit tests/contract

lint: setup ## ruff, mypy --strict and the import rules
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup ## let ruff sort imports and lay out the code
	$(BIN)/ruff check --fix $(CODE)
	$(BIN)/ruff format $(CODE)

docs: setup ## build the documentation site into build/site, without a warning
	$(INSTALL) --constraint constraints.txt --editable '.[all,docs]'
	NO_MKDOCS_2_WARNING=1 PATH=$(BIN):$$PATH $(BIN)/mkdocs build --quiet # the notice is of a theme's next year

bench: setup ## measure speed on this machine
	$(BIN)/python jobs/bench.py

clean: ## remove the virtual environment and all caches
	rm -rf $(VENV) $(VENV)-newer build dist platform/*.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find platform jobs tests -name __pycache__ -type d -prune -exec rm -rf {} +

# Everything runs from a virtual environment that the first target to need it creates.
#   make up                      serve the demo model            make test    run the tests
#   make up ARGS="--port 9000"   with flags of `runtime up`      make check   format, lint, types
#   make up EXTRAS=tpu           with the TPU build of jax       make clean   remove what was made here
#   make compile ARGS="..."      runtime compile: a topology's programs for a TPU that need not be there
#   make bench                   time the server with fixed loads, and say what became worse since the last time
#   make simulate SEEDS=2000     the actors under planned faults on a simulated carrier; prints what replays a failure
#   make kernels                 compile every kernel for every TPU, without one; ARGS="--op kv_write" does a part
SHELL := /bin/sh
VENV := .venv
BIN := $(VENV)/bin
CONSTRAINTS := constraints.txt
EXTRAS ?=
ARGS ?=
# Processes that share the tests, file by file; WORKERS=0 runs them in one, as a debugger needs it.
WORKERS ?= 2
SEEDS ?= 2000
TARGETS := v5e v6e tpu7x

# The first interpreter that runs and is new enough; `make PYTHON=/path/to/python3.12 ...` chooses another.
PYTHON ?= $(shell for python in python3 python3.11 python3.12 python3.13; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$python; break; }; done)

comma := ,
SERVE := $(VENV)/.installed$(if $(EXTRAS),-$(subst $(comma),-,$(EXTRAS)))
DEVELOP := $(VENV)/.installed-test

.PHONY: up compile bench kernels simulate test check format clean

up: $(SERVE)
	@exec $(BIN)/runtime up $(ARGS)

compile:
	@$(MAKE) --no-print-directory EXTRAS=tpu $(VENV)/.installed-tpu
	@exec $(BIN)/runtime compile $(ARGS)

bench: $(SERVE)
	@exec $(BIN)/python -m loadtest.suite $(ARGS)

test: $(DEVELOP)
	@$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

simulate: $(DEVELOP)
	@$(BIN)/python -m tests.simulation.campaign --seeds $(SEEDS) --processes $(WORKERS) $(ARGS)

check: $(DEVELOP)
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy

format: $(DEVELOP)
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

# A process of its own for each target: the compiler reads the chip from the environment when it starts.
kernels: $(DEVELOP)
	@failed=; for target in $(TARGETS); do \
		$(BIN)/python -m kernels.compile --target $$target $(ARGS) || failed="$$failed $$target"; \
	done; test -z "$$failed" || { echo "make kernels: failed for$$failed" >&2; exit 1; }

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "make: needs Python 3.11 or newer; say which with PYTHON=..." >&2; exit 2; }
	@echo "Creating $(VENV) with $(PYTHON)"
	@$(PYTHON) -m venv $(VENV)

# A stamp per set of extras: a second run installs nothing unless the project's requirements changed.
$(SERVE): pyproject.toml $(CONSTRAINTS) | $(VENV)/bin/python
	@echo "Installing runtime$(if $(EXTRAS),[$(EXTRAS)]) into $(VENV)"
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c $(CONSTRAINTS) -e ".$(if $(EXTRAS),[$(EXTRAS)])"
	@touch $@

$(DEVELOP): pyproject.toml $(CONSTRAINTS) | $(VENV)/bin/python
	@echo "Installing runtime[test] into $(VENV)"
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c $(CONSTRAINTS) -e ".[test]"
	@touch $@

clean:
	rm -rf $(VENV) .cache build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

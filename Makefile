# make demo and make test need Python 3.11 or newer, and nothing else.
# Variables: PYTHON (interpreter), TORCH (what pip installs as torch), ARGS (more arguments for demo or test).

PYTHON ?=
TORCH ?=
ARGS ?=
export PYTHON TORCH

.DEFAULT_GOAL := help
.PHONY: help install demo test lint lock clean

help:  ## what there is to make
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-9s %s\n", $$1, $$2 }' Makefile

install:  ## .venv with the whole product in it
	@sh scripts/install

demo: install  ## from a file to an evaluated model, on this machine
	@.venv/bin/slmforge demo $(ARGS)

test: install  ## every test, two at a time with one thread each
	@OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n 2 $(ARGS)

lint: install  ## style, types and import rules
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy
	.venv/bin/lint-imports

lock:  ## uv.lock and constraints.txt anew from pyproject.toml (needs uv)
	uv lock --no-config
	{ echo '# Made by `make lock` from uv.lock. torch is not in it: which build serves depends on the machine.'; \
	  uv export --no-config --frozen --all-extras --all-groups --no-hashes --no-emit-project --no-header --no-annotate | \
	    grep -vE '^(torch|triton|nvidia-[a-z0-9-]+|cuda-[a-z]+)=='; } >constraints.txt

clean:  ## remove what make and the tools made (not your data in .slmforge)
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis build dist

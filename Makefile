# What a person types; `make` alone lists it.  What a target does is in tools/ and pyproject.toml.
.DEFAULT_GOAL := help
.PHONY: help setup kernels demo test matrix check bench wheels clean

help:  ## list these targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' Makefile

setup:  ## make or refresh .venv: every distribution editable, its kernels compiled
	@tools/setup

kernels:  ## compile in place the kernels that changed, and only those
	@tools/kernels

demo: setup  ## set up, and run the demo: guests, a switch, a tap; no root or VMM needed
	@.venv/bin/vnic demo $(ARGS)

test: setup  ## set up, and run all tests (make test ARGS='-k tap' runs some)
	@.venv/bin/pytest $(ARGS)

matrix: setup  ## run one scenario for every frontend on every backend, and print the table
	@.venv/bin/pytest --quiet --matrix tests/matrix $(ARGS)

check: setup  ## lint, formatting, types, and who may import whom
	@.venv/bin/ruff check
	@.venv/bin/ruff format --check
	@.venv/bin/mypy
	@.venv/bin/lint-imports

bench: setup  ## measure (make bench ARGS=vale runs one)
	@.venv/bin/python -m benchmarks $(ARGS)

wheels: setup  ## build every distribution's sdist, and its wheel from that, into dist/
	@rm -rf dist
	@.venv-uv/bin/uv build --quiet --all-packages --out-dir dist
	@ls dist

clean:  ## remove what the targets above made; the cache of guests' packages stays
	rm -rf .venv .venv-uv uv.lock dist .hypothesis .*_cache
	rm -rf core/build plugins/*/build core/src/*.egg-info plugins/*/src/*.egg-info
	find core plugins -name '*_kernel.c' -o -name '*.so' | xargs rm -f

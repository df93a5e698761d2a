# Two commands for a fresh machine: `make demo` and `make test`.
SHELL := /bin/bash
PYTHON ?= python3
RECIPE ?= digits
CANDIDATE ?= scratch
SEEDS ?= 0
BIN := .venv/bin
UV = $(or $(shell command -v uv),$(BIN)/uv)
READY := .venv/.ready

# Settings for other projects that would install elsewhere, other versions, or not at all. Package indexes stay in effect.
unexport PYTHONHOME PYTHONPATH PIP_CONSTRAINT PIP_DRY_RUN PIP_NO_BINARY PIP_PREFIX PIP_PYTHON PIP_REQUIRE_HASHES PIP_ROOT
unexport PIP_TARGET UV_CONSTRAINT UV_EXCLUDE_NEWER UV_NO_BINARY UV_NO_BUILD UV_NO_EDITABLE UV_OVERRIDE UV_PRERELEASE
unexport UV_PROJECT UV_REQUIRE_HASHES UV_RESOLUTION UV_SYSTEM_PYTHON UV_WORKING_DIR
export PIP_USER := 0

.PHONY: install demo run recipe results serve ui test integration lint format docs reference gpu cluster lock clean bench-train profile-train bench-pipeline bench-ci bench-requests bench-accuracy bench-streaming bench-gate bench-serve bench-runtimes bench-monitoring bench-operations bench-own-images bench-cluster bench-rows photographs faults study accuracy weights stages pull-request audit licences sbom help

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' Makefile | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 16

install: $(READY)  ## install the locked packages into .venv

demo: $(READY)  ## run the whole pipeline on handwritten digits, from images to a promoted model
	@$(BIN)/mobilenet-pipeline run --recipe digits

run: $(READY)  ## run the whole pipeline on RECIPE (digits, cifar10, seed)
	@$(BIN)/mobilenet-pipeline run --recipe $(RECIPE)

recipe: $(READY)  ## let DVC's own commands see the stages of RECIPE
	@$(BIN)/python -m mobilenet_pipeline.stages choose $(RECIPE)

results: $(READY)  ## like run, and copy the results to docs/results/RECIPE.json
	@$(BIN)/mobilenet-pipeline run --recipe $(RECIPE) --results docs/results

serve: $(READY)  ## serve the promoted model of RECIPE as an HTTP API on 127.0.0.1:3000
	@$(BIN)/mobilenet-pipeline serve --recipe $(RECIPE)

ui: $(READY)  ## show the MLflow and Prefect pages
	@$(BIN)/mobilenet-pipeline ui

test: $(READY)  ## run all tests
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

integration: $(READY)  ## run the tests with PostgreSQL, S3, MLflow, Prefect, a worker and several workspaces, all on this machine
	$(BIN)/python -m pytest -o timeout=1800 tests/integration

lint: $(READY)  ## check with ruff and mypy, and every link of the documentation
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

format: $(READY)  ## format the code with ruff
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(READY)  ## build the documentation site: site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

reference: $(READY)  ## generate docs/reference from the code
	$(BIN)/python tools/reference.py

gpu: $(READY)  ## add the CUDA libraries, for training on NVIDIA GPUs
	$(UV) pip install --python $(BIN)/python -e '.[gpu]'

cluster: $(READY)  ## add Ray and the Kubernetes packages, for trainings on a cluster
	@$(UV) pip install --quiet --require-hashes -r requirements-cluster.lock --python $(BIN)/python

LOCKED := --extra dev --extra heic --extra servers --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate --no-header -q

lock: $(READY)  ## resolve requirements.lock and requirements-cluster.lock again from pyproject.toml
	$(UV) pip compile pyproject.toml $(LOCKED) --upgrade -o requirements.lock
	$(UV) pip compile pyproject.toml $(LOCKED) --extra cluster --extra kubernetes --constraint requirements.lock --upgrade -o requirements-cluster.lock

bench-train: $(READY)  ## compare the CPU time of a training step with stock Keras and an earlier commit
	@$(BIN)/python benchmarks/bench_train.py --compare && $(BIN)/python benchmarks/page.py

profile-train: $(READY)  ## show what the CPU time of a training step goes to
	@$(BIN)/python benchmarks/profile_train.py && $(BIN)/python benchmarks/page.py

bench-pipeline: $(READY)  ## compare the seconds of a run beside its trainings with those of an earlier commit
	@$(BIN)/python benchmarks/bench_pipeline.py && $(BIN)/python benchmarks/page.py

bench-ci: $(READY)  ## compare the seconds of .ci/run with those of an earlier commit; an hour
	@$(BIN)/python benchmarks/bench_ci.py && $(BIN)/python benchmarks/page.py

bench-requests: $(READY)  ## compare the requests that the services of digits and cifar10 answer with those of an earlier commit; needs wrk
	@$(BIN)/python benchmarks/bench_requests.py && $(BIN)/python benchmarks/page.py

bench-accuracy: $(READY)  ## compare the CPU minutes of the trainings in training.json with those of an earlier commit
	@$(BIN)/python benchmarks/bench_accuracy.py && $(BIN)/python benchmarks/page.py

bench-streaming: $(READY)  ## compare training from the dataset's file with training from memory, at 32 and 224 pixels
	@$(BIN)/python benchmarks/bench_streaming.py

bench-gate: $(READY)  ## measure how often the gate is right about synthetic models
	@$(BIN)/python benchmarks/bench_gate.py

bench-serve: $(READY)  ## compare the throughput of RECIPE's service with three other BentoML services
	@$(BIN)/python benchmarks/bench_serve.py --recipe $(RECIPE) && $(BIN)/python benchmarks/page.py

bench-runtimes: $(READY)  ## compare LiteRT with ONNX Runtime, SavedModel and Keras, for RECIPE's CANDIDATE
	@$(BIN)/python benchmarks/bench_runtimes.py $(RECIPE) $(CANDIDATE) && $(BIN)/python benchmarks/page.py

faults: $(READY)  ## kill runs and rollbacks at 61 moments while a champion serves; an hour
	@$(BIN)/python benchmarks/faults.py

bench-operations: $(READY)  ## compare status, gate, figure and validation at scale with an earlier commit
	@$(BIN)/python benchmarks/bench_operations.py

bench-own-images: $(READY)  ## measure ingestion, near duplicates, streaming, prediction sets and int8 twins on CIFAR-10
	@$(BIN)/python benchmarks/bench_own_images.py && $(BIN)/python benchmarks/page.py

bench-rows: $(READY)  ## measure every stage but training for up to 1,000,000 generated images; hours, and it can be continued
	@$(BIN)/python benchmarks/bench_rows.py && $(BIN)/python benchmarks/page.py

photographs: $(READY)  ## cut photographs that scikit-image ships into pictures of 96 pixels, as an example of own images
	@mkdir -p pictures/photographs && $(UV) run --quiet --no-project --isolated --python $(BIN)/python \
	  --with scikit-image==0.26.0 --with scikit-learn==$$($(BIN)/python -c 'import sklearn; print(sklearn.__version__)') \
	  python benchmarks/photographs.py pictures/photographs

bench-cluster: $(READY)  ## measure how training scales over workers, and what a Ray cluster of two nodes survives; needs `make cluster`
	@$(BIN)/python benchmarks/bench_cluster.py && $(BIN)/python benchmarks/page.py

bench-monitoring: $(READY)  ## simulate days with and without drift, and count what the monitoring raises
	@$(BIN)/python benchmarks/bench_monitoring.py

study: $(READY)  ## train the missing rows of STUDY in benchmarks/studies.yaml; hours for all studies
	@$(BIN)/python -m mobilenet_pipeline.stages choose cifar10
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/dvc repro --quiet recipes/dvc.yaml:ingest@cifar10
	@$(BIN)/python benchmarks/study.py $(STUDY)
	@$(BIN)/python benchmarks/page.py

accuracy: $(READY)  ## train CANDIDATE of RECIPE with each of SEEDS and record its test accuracy
	@$(BIN)/python benchmarks/accuracy.py $(RECIPE) $(CANDIDATE) --seeds $(SEEDS)
	@$(BIN)/python benchmarks/page.py

stages: $(READY)  ## run the stages of RECIPE without registering or promoting anything
	@$(BIN)/python tools/pull_request.py $(RECIPE) --stages

pull-request: $(READY)  ## write reports/RECIPE/pull-request.md: metrics beside BASE, validation, and the gate's dry run
	@$(BIN)/python tools/pull_request.py $(RECIPE) --base "$(BASE)"

audit: $(READY)  ## look for known vulnerabilities in the locked packages; needs a network
	@$(BIN)/python tools/supply_chain.py audit

licences: $(READY)  ## generate docs/reference/licences.md from the installed packages
	@$(BIN)/python tools/supply_chain.py licences

sbom: $(READY)  ## write the bill of materials of RECIPE's live Bento to reports/RECIPE/sbom.cdx.json
	@$(BIN)/python tools/supply_chain.py sbom --recipe $(RECIPE)

weights: $(READY)  ## train the bundled checkpoint again on CIFAR-10
	@$(BIN)/python -m mobilenet_pipeline.stages choose cifar10
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/dvc repro recipes/dvc.yaml:ingest@cifar10
	$(BIN)/python tools/bundle_weights.py

clean:  ## remove outputs, registry and data of all runs; environment, downloads and records stay
	rm -rf data models metrics reports logs mlruns mlflow.db* .bentoml .prefect .dvc/tmp .dvc/cache .dvc-storage .pytest_cache .mypy_cache .ruff_cache

# uv, if the machine has none, comes from the package index into the environment itself.
$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else f"Python 3.11 to 3.13 is needed, this is {v[0]}.{v[1]}: make PYTHON=python3.12 demo")'
	@test -x $(BIN)/python || { command -v uv >/dev/null && uv venv -q --python $(PYTHON) .venv; } || $(PYTHON) -m venv .venv || { rm -rf .venv; exit 1; }
	@command -v uv >/dev/null || test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet uv
	@command -v $(UV) >/dev/null || { echo "pip installed uv elsewhere than $(BIN): take target, prefix and root out of pip's configuration (pip config list)"; exit 1; }
	@echo "installing the locked packages (about 3 GB) into .venv"
	@UV_COMPILE_BYTECODE_TIMEOUT=0 $(UV) pip install --quiet --compile-bytecode --require-hashes -r requirements.lock --python $(BIN)/python && \
	  $(UV) pip install --quiet --no-deps --no-build-isolation -e . --python $(BIN)/python
	@test -x $(BIN)/mobilenet-pipeline || { echo "uv installed elsewhere than $(BIN): take target and prefix out of uv's configuration (~/.config/uv/uv.toml)"; exit 1; }
	@touch $@

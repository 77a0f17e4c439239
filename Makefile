# Every target creates and reuses the project's own virtual environment in .venv; PYTHON names the interpreter for it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN = TF_CPP_MIN_LOG_LEVEL=2 $(NICE) $(BIN)/python

.DEFAULT_GOAL := help
.PHONY: help demo report test test-keras3 test-legacy test-jax test-workers test-ray lint docs bench mutants tpu-check release-check oldest-check clean

help: ## Show this list
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

# One stamp per set of extras: `make demo` does not wait for what only the tests or the docs need.
$(VENV)/%.stamp: setup.cfg pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[$*]'
	@touch $@

# Of targets that run at once, these give way to those whose tests wait for other processes.
demo test-jax mutants: NICE := nice -n 10

demo: $(VENV)/demo.stamp ## Train scikit-learn's digits at 1, 8 and 32 times the batch: table, plot, JSON
	$(RUN) examples/demo.py

report: $(VENV)/report.stamp $(if $(DATA_DIR),$(VENV)/data.stamp) ## From a small batch to an integer file, one HTML report: QUICK=1 (digits) or DATA_DIR=...
	$(if $(QUICK)$(DATA_DIR),,$(error give QUICK=1 for scikit-learn's digits, or DATA_DIR=FOLDER with CIFAR-10 of tensorflow-datasets))
	TF_USE_LEGACY_KERAS=1 $(RUN) examples/end_to_end.py $(if $(QUICK),,--data-dir $(DATA_DIR)) $(if $(DTYPE),--dtype $(DTYPE))

TESTS := # arguments of pytest, to run less than all

test: test-keras3 test-legacy test-jax ## Run all tests: Keras 3, tf_keras, Keras 3 on JAX

test-keras3: $(VENV)/test.stamp ## Run the tests on Keras 3 with TensorFlow
	$(RUN) -m pytest $(TESTS)

test-legacy: $(VENV)/test.stamp ## Run the tests on tf_keras
	TF_USE_LEGACY_KERAS=1 $(RUN) -m pytest $(TESTS)

test-jax: $(VENV)/test.stamp ## Run the tests that need no TensorFlow on Keras 3 with JAX
	KERAS_BACKEND=jax $(RUN) -m pytest $(TESTS)

test-ray: $(VENV)/test.stamp $(VENV)/ray.stamp ## Install Ray and train with its TensorflowTrainer, in both Kerases
	$(RUN) -m pytest tests/test_ray.py
	TF_USE_LEGACY_KERAS=1 $(RUN) -m pytest tests/test_ray.py

WORKER_TESTS = $(shell grep --files-with-matches --fixed-strings mark.workers tests/test_*.py)

test-workers: $(VENV)/test.stamp ## Run the tests with several processes, both flavours at once
	$(MAKE) --jobs=2 --output-sync=line test-keras3 test-legacy TESTS='-m workers $(WORKER_TESTS)'

lint: $(VENV)/test.stamp ## Check style, types and the layer rule
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.citation-file-format CITATION.cff
	$(RUN) -m pytest -q tests/test_layers.py

mutants: $(VENV)/test.stamp ## Break the code on purpose: every break must turn a test red; TESTED=1 trusts that all are green now
	$(RUN) -m tests.mutants $(if $(TESTED),--tested)

docs: $(VENV)/docs.stamp ## Build the documentation into site/
	$(BIN)/mkdocs build --strict

bench: $(VENV)/test.stamp ## Measure all that has a goal: one table; QUICK=1 runs it in minutes and judges nothing
	$(RUN) benchmarks/table.py $(if $(QUICK),--quick)

release-check: $(VENV)/release.stamp ## Build wheel and sdist; test the wheel with every Python on the PATH
	$(BIN)/python tools/release_check.py $(ARGUMENTS)

oldest-check: $(VENV)/release.stamp ## Test the wheel with the oldest packages that are supported
	$(BIN)/python tools/release_check.py --quick --python $(PYTHON) --constraints requirements/oldest.txt

tpu-check: $(VENV)/tpu-check.stamp ## Compile training steps for Cloud TPUs that are not there; FULL=1 adds ResNet-50
	$(RUN) -m benchmarks.tpu_check $(if $(FULL),--resnet50)

clean: ## Remove the virtual environment and everything that was built
	rm -rf $(VENV) site build dist runs *.egg-info

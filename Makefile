# Everything from a fresh clone with Python 3.11 or newer, pip and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CONFIG ?= configs/vit.py
ARGS ?=

.PHONY: train test test-all test-versions lint format docs parity integrations clean

train: $(VENV)/.base
	$(BIN)/python -m rdrop_jax.train --config $(CONFIG) $(ARGS)

test: $(VENV)/.dev lint
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

test-all: $(VENV)/.dev lint
	$(BIN)/python -m pytest -n 2 --dist loadfile

# Core tests on the oldest supported packages, and on every Python that is installed.
test-versions:
	sh .ci/test_versions

lint: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The documentation site, in docs/_build/html; warnings and broken links are errors.
docs: $(VENV)/.docs
	$(BIN)/python -m sphinx -W --keep-going docs docs/_build/html

# Arrays in tests/parity that other tests compare with, made again by PyTorch; and the
# tests that need it. An environment of its own: it is large, and nothing else needs it.
parity: .venv-parity/.done
	for family in vit dinov2 seq2seq encoder bart; do \
		.venv-parity/bin/python tests/parity/make_$$family.py || exit 1; done
	.venv-parity/bin/python -m pytest -n 0 -m "not slow" \
		tests/pretrained/test_pretrained.py tests/pretrained/test_dinov2.py tests/models/test_seq2seq.py tests/pretrained/test_encoder.py \
		tests/pretrained/test_text_encoders.py \
		tests/pretrained/test_bart.py

.venv-parity/.done: requirements.txt requirements-dev.txt requirements-parity.txt .ci/make_venv
	sh .ci/make_venv "$(PYTHON)" .venv-parity
	.venv-parity/bin/python -m pip install --quiet --disable-pip-version-check \
		-r requirements.txt -r requirements-dev.txt -r requirements-parity.txt
	.venv-parity/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	touch $@

# Examples in other frameworks, each in an environment of its own; NAMES selects some.
integrations:
	PYTHON="$(PYTHON)" sh .ci/integrations $(NAMES)

$(VENV)/.base: requirements.txt pyproject.toml .ci/make_venv
	sh .ci/make_venv "$(PYTHON)" $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	touch $@

$(VENV)/.dev: $(VENV)/.base requirements-dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

$(VENV)/.docs: $(VENV)/.base requirements-docs.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-docs.txt
	touch $@

clean:
	rm -rf docs/_build $(VENV) .venv-parity .venv-versions .venv-integrations .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist *.egg-info

# Two commands do all set-up on a fresh machine: `make quickstart` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN ?= runs/quickstart

.PHONY: help quickstart test test-fast lint bench clean

help:
	@echo "make quickstart  install, then the whole way on the built-in catalogue (about 4 minutes on 2 cores)"
	@echo "make test        install, then lint, types and every test but gpu and network"
	@echo "make test-fast   unit tests only"
	@echo "make lint        ruff and mypy"
	@echo "make bench       the figures behind the speed claims"

$(VENV)/installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -e .
	touch $@

$(VENV)/installed-test: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -e '.[test]'
	touch $(VENV)/installed $@

quickstart: $(VENV)/installed
	$(BIN)/genrec quickstart --out $(RUN)

lint: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest -m "not gpu and not network and not vllm" \
	    --cov --cov-report=term:skip-covered --cov-fail-under=90

test-fast: $(VENV)/installed-test
	$(BIN)/python -m pytest -m "not slow and not gpu and not network and not vllm"

bench: $(VENV)/installed-test
	$(BIN)/genrec bench decode
	$(BIN)/genrec bench tokenize

clean:
	rm -rf $(VENV) runs .pytest_cache .mypy_cache .ruff_cache .coverage

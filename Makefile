# `make demo` and `make test` set everything up on a fresh machine; a finished set-up is found again in a second.
VENV := .venv
PYTHON ?= python3
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2
NUMERIC := $(PYTEST) --dist worksteal -m numeric

.PHONY: demo test older-cpus lint types examples clean

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt torch torchvision
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $(READY)

demo: $(READY)
	$(BIN)/slimkit compress --output demo

test: $(READY)
	$(PYTEST) --dist loadfile

# The tests whose answers hang on the CPU's kernels, as without AVX512 and as without VNNI. Where the CPU lacks these,
# `make test` has run them so already.
older-cpus: $(READY)
	if grep -qwE 'avx512f|avx_vnni' /proc/cpuinfo; then \
		ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 $(NUMERIC); \
	else echo "this CPU has neither AVX512 nor VNNI: make test ran as an older CPU"; fi
	if grep -qw avx512_vnni /proc/cpuinfo; then ONEDNN_MAX_CPU_ISA=AVX512_CORE $(NUMERIC); fi

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

examples: $(READY)
	$(BIN)/python -m pytest examples

clean:
	rm -rf $(VENV) demo build dist *.egg-info

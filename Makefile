# Every target makes the environment it needs in .venv first.
PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable

.PHONY: study test test-all check docs bench sanitize

CORE := setup.py $(wildcard src/steadynorm/kernels/cpu/core/*)
SANITIZERS := -fsanitize=address,undefined -fno-sanitize-recover=undefined

study: .venv/.study  ## the main job; make study ARGS="--data mnist --data-dir DIR"
	$(BIN)/steadynorm study $(ARGS)

test: .venv/.dev  ## everything but the tests marked slow, in two processes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" --numprocesses 2 --dist worksteal $(ARGS)

test-all: .venv/.dev
	$(BIN)/python -m pytest $(ARGS)

check: .venv/.dev  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

sanitize: .venv/.dev  ## tests of the core, built with sanitizers in build/sanitize
	rm -rf build
	CFLAGS="$(SANITIZERS)" LDFLAGS="$(SANITIZERS)" $(BIN)/python -m pip install --quiet --no-deps --target build/sanitize .
	LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libstdc++.so)" ASAN_OPTIONS=detect_leaks=0 \
	PYTHONPATH=build/sanitize $(BIN)/python -m pytest tests/kernels $(ARGS)

docs: .venv/.study  ## docs/evidence.md, the figures in docs/benchmarks.md and README.md, and pictures, from the committed records
	$(BIN)/steadynorm report benchmarks/results/evidence --markdown docs/evidence.md --figures docs/images/evidence
	$(BIN)/steadynorm bench --out benchmarks/results --markdown docs/benchmarks.md --markdown README.md --figures docs/images

bench: .venv/.study  ## beside torch's layers, up to half an hour; make bench ARGS="--quick"
	$(BIN)/steadynorm bench --install-from . $(ARGS)

.venv/.study: pyproject.toml constraints.txt $(CORE) | .venv
	$(INSTALL) '.[study]'
	touch $@

.venv/.dev: pyproject.toml constraints.txt $(CORE) | .venv
	$(INSTALL) '.[study,dev]'
	touch $@ .venv/.study

.venv:
	$(PYTHON) -m venv .venv

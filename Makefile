# make map    install, render the demo scenes, map them, check and score the map: runs/demo
# make test   what CI runs: ruff, mypy, pytest in two processes of one thread each
# make install makes .venv alone. Another interpreter: make PYTHON=python3.12 ...

PYTHON ?= python3
BIN := .venv/bin
OUT := runs/demo
PROMPTS := building road water tree

# Where it is set every worker of Ray would compile all that it imports anew, for some seconds.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: map test install
.DEFAULT_GOAL := map

map: .venv/.installed
	$(BIN)/python jobs/map_region.py --catalog demo $(PROMPTS:%=--prompt %) --out $(OUT)
	$(BIN)/python jobs/verify.py $(OUT)
	$(BIN)/python jobs/evaluate.py --run $(OUT)
	@echo "The map is in $(OUT): report.html (to look around in), features.parquet (outlines), masks.zarr (masks), quicklook.png."

test: .venv/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 2 --dist loadfile --durations 15

install: .venv/.installed

# --no-compile: Python compiles what it imports, which is much less than what is installed.
# Two stamps, so that torch and the rest are fetched once and the tools of the tests only by who runs them.
.venv/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "GeoPixel needs Python 3.11 or newer, and $(PYTHON) is %d.%d: make PYTHON=/path/to/python3.11" % sys.version_info[:2])'
	@echo "Installing into .venv; the first time takes some minutes."
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --editable .
	@touch $@

.venv/.installed-dev: .venv/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --editable '.[dev]'
	@touch $@

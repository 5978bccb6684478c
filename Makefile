# Two commands do all the set-up: `make demo` and `make test`. Only Python >= 3.11, make and git are needed.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
HOST   ?= 127.0.0.1
PORT   ?= 8000

.PHONY: demo serve page test lint audit format docs bench constraints clean

# One stamp for each set of requirements, remade when they change.
$(VENV)/.run: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e .
	touch $@

$(VENV)/.dev: $(VENV)/.run
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[test,lint,docs,postgres]'
	touch $@

demo: $(VENV)/.run
	$(BIN)/firnline demo

serve: $(VENV)/.run
	$(BIN)/firnline serve --host $(HOST) --port $(PORT)

# The page at /map; needs Node.js and npm, which nothing else does.
page:
	cd web && npm ci && npm run --silent build

test: $(VENV)/.dev
	$(BIN)/python -m pytest $(ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Known vulnerabilities that an upgrade mends, where PyPI and npm tell of them.
audit: $(VENV)/.dev
	$(BIN)/python .ci/audit.py

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The documentation, into site/; a broken link or an unknown name is an error.
docs: $(VENV)/.dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

bench: $(VENV)/.dev
	for script in benchmarks/[a-z]*.py; do $(BIN)/python $$script || exit 1; done

# Pins for every platform and Python version, without addresses.
constraints:
	uv pip compile --universal --python-version 3.11 --all-extras pyproject.toml \
	  --no-header --no-annotate --no-emit-package firnline --no-emit-package pip -o constraints.txt

clean:
	rm -rf $(VENV) build dist site *.egg-info api/static web/node_modules

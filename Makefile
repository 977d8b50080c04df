# Everything that can be done here; `make` lists it.
.DEFAULT_GOAL := help
.PHONY: help venv serve test check format docs wheel constraints audit clean

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

venv: $(VENV)/.made ## make an empty virtual environment in .venv, to install a PyTorch of your own into first

serve: $(VENV)/.installed ## install what is needed and serve on http://127.0.0.1:8000 (ARGS="--port 9000")
	@$(BIN)/openklein serve $(ARGS)

test: $(VENV)/.installed-test ## run all tests (ARGS="tests/api -x")
	$(BIN)/python -m pytest $(ARGS)

check: $(VENV)/.installed-test ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed-test ## put imports and layout in order
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.installed-test ## write the generated parts of docs/
	$(BIN)/python docs/generate.py

wheel: $(VENV)/.installed-test ## build dist/*.whl
	$(BIN)/python -m build --wheel --no-isolation

constraints: ## resolve all versions anew into constraints.txt, but for torch, whose pin is set by hand
	$(PYTHON) -m venv $(VENV)-constraints
	$(VENV)-constraints/bin/pip install --quiet "$$(grep ^torch== constraints.txt)" '.[test,train,otel]'
	{ head -n 1 constraints.txt; $(VENV)-constraints/bin/pip freeze --exclude openklein | sed 's/+cpu$$//' | sort -f; } \
	  > constraints.new
	mv constraints.new constraints.txt
	rm -r $(VENV)-constraints

# Strict, because a package that could not be looked up would otherwise count as one without vulnerabilities.
audit: ## compare the versions in constraints.txt with the known vulnerabilities (needs the network; ARGS="-s osv")
	$(PYTHON) -m venv $(VENV)-audit
	$(VENV)-audit/bin/pip install --quiet pip-audit
	$(VENV)-audit/bin/pip-audit --strict --disable-pip --no-deps -r constraints.txt $(ARGS)
	rm -r $(VENV)-audit

clean: ## remove the virtual environment and what was built
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("openklein needs Python 3.11 or newer; this is " + sys.version.split()[0] + " (make PYTHON=... names another)")'
	$(PYTHON) -m venv $(VENV)
	@touch $@

# A torch that is in .venv already is kept, so that a person with a GPU can choose it (docs/deploy.md).
$(VENV)/constraints.txt: $(VENV)/.made constraints.txt
	@if $(BIN)/python -c 'import importlib.util as u, sys; sys.exit(u.find_spec("torch") is None)'; then \
	  echo "Keeping the PyTorch that $(VENV) has."; grep -v '^torch==' constraints.txt > $@; \
	else \
	  echo "Installing PyTorch. On Linux x86-64 this may bring CUDA libraries of several GB; docs/deploy.md shows how to choose."; \
	  cp constraints.txt $@; \
	fi

$(VENV)/.installed: $(VENV)/constraints.txt pyproject.toml
	$(BIN)/pip install --constraint $(VENV)/constraints.txt --editable .
	@touch $@

$(VENV)/.installed-test: $(VENV)/constraints.txt pyproject.toml
	$(BIN)/pip install --constraint $(VENV)/constraints.txt --editable '.[test,train,otel]'
	@touch $@ $(VENV)/.installed

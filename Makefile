# `make demo` and `make test` do all their set-up themselves; a second call skips it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: setup demo test check docs build clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -c "import torch" 2>/dev/null || $(BIN)/python -m pip install --quiet -c constraints.txt torch
	grep -v '^torch==' constraints.txt > $(VENV)/constraints.txt
	$(BIN)/python -m pip install --quiet -c $(VENV)/constraints.txt -e '.[dev,bench,lora]'
	touch $@

# Adapts the bundled model to bundled unlabeled questions and shows the result.  ARGS="model=FOLDER data=FILE" for yours.
demo: setup
	$(BIN)/spinerl adapt configs/demo.yaml --overwrite $(ARGS)

test: setup
	$(BIN)/python -m pytest $(ARGS)

# Style, types, and that no documented figure of the configuration is stale.
check: setup
	$(BIN)/ruff check src tests
	$(BIN)/ruff format --check src tests
	$(BIN)/pyright
	$(BIN)/python -m spinerl.reference --check

# Writes the reference pages that are made from the code.
docs: setup
	$(BIN)/python -m spinerl.reference

build: setup
	$(BIN)/python -m build

clean:
	rm -rf $(VENV) build dist runs .pytest_cache .ruff_cache .hypothesis

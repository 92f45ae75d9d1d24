# make demo    the whole path, from images to predictions, on real data
# make test    every test
# make check   make lint and every fast test; about six minutes
# make lint    format, lint, types, import contracts
#
# Each creates .venv from constraints.txt by itself, once. With another Python, in an environment of its own:
#   make check PYTHON=python3.13 VENV=.venv-3.13

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
EXTRAS := search,cpu,openvino,ncnn,litert,mnn,serve,grpc,loadgen,optuna,tensorboard,mlflow,ray,data,dev

# Two processes of one thread each use two cores better than one of two.
test check: export OMP_NUM_THREADS ?= 1
TEST_JOBS ?= 2

.PHONY: docs demo test check lint durations format install constraints clean

demo: $(INSTALLED)
	$(BIN)/python demo/run.py

test: $(INSTALLED)
	$(BIN)/python -m pytest -n $(TEST_JOBS) --dist loadfile $(PYTEST_OPTIONS)

check: lint
	$(BIN)/python -m pytest -q --fast -n $(TEST_JOBS) --dist loadfile

lint: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Which tests are fast, measured anew; on a machine that does nothing else.
durations: $(INSTALLED)
	$(BIN)/python -m pytest -q -m "not wheel" --durations=0 --durations-min=0.3 | tee durations.tmp
	$(BIN)/python tests/durations.py < durations.tmp
	rm durations.tmp

format: $(INSTALLED)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing the versions of constraints.txt into $(VENV), once; this takes a few minutes"
	$(BIN)/python -m pip install -qq --disable-pip-version-check --constraint constraints.txt --editable '.[$(EXTRAS)]'
	@touch $@

# After adding a dependency: install it into .venv, then write down what the tests ran with.
constraints:
	$(BIN)/python -m pip list --format=freeze --exclude smash-export --exclude pip --exclude setuptools \
		| sed 's/+cpu$$//' > constraints.tmp
	{ sed -n '/^#/p' constraints.txt; cat constraints.tmp; } > constraints.new
	rm constraints.tmp && mv constraints.new constraints.txt

# A runtime that cannot share an environment with the others gets its own; where that is there, make test uses it:
#   make target-executorch    make target-litert    make target-tensorrt-rtx
target-%: .venv-%/.installed $(INSTALLED)
	$(BIN)/python -m pytest -q tests/deploy_targets/test_own_environments.py -k $*

# NVIDIA's builder without a GPU.
target-tensorrt-rtx: .venv-tensorrt-rtx/.installed $(INSTALLED)
	$(BIN)/python -m pytest -q tests/deploy_targets/tensorrt/test_real_builder.py

.venv-%/.installed: deploy_targets/environments/%.txt
	test -x .venv-$*/bin/python || $(PYTHON) -m venv .venv-$*
	.venv-$*/bin/python -m pip install -qq --disable-pip-version-check --requirement $<
	@touch $@

.PRECIOUS: .venv-%/.installed
# The documentation as a site in site/; a link that leads nowhere fails.
docs: .venv-docs/.installed
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict --quiet

.venv-docs/.installed: packaging/docs.txt
	test -x .venv-docs/bin/python || $(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python -m pip install -qq --disable-pip-version-check --requirement $<
	@touch $@

clean:
	rm -rf build dist site runs demo-bundle demo-images .pytest_cache .mypy_cache .ruff_cache

# make demo    the whole path, from images to predictions, on real data
# make test    every test
# make check   format, lint, types, import contracts, fast tests; under a minute
#
# Each creates .venv from constraints.txt by itself, once.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
INSTALLED := .venv/.installed
EXTRAS := search,cpu,openvino,ncnn,litert,mnn,serve,grpc,loadgen,optuna,tensorboard,dev

# Two processes of one thread each use two cores better than one of two.
test check: export OMP_NUM_THREADS ?= 1
TEST_JOBS ?= 2

# What make check runs: tests of one second or less.
FAST_TESTS := tests/smash_export/test_cli.py tests/smash_export/test_cli_config.py \
	tests/smash_export/test_cli_console.py tests/smash_export/measure/test_doctor.py \
	tests/smash_export/test_packaging.py

.PHONY: demo test check format install constraints clean

demo: $(INSTALLED)
	$(BIN)/python demo/run.py

test: $(INSTALLED)
	$(BIN)/python -m pytest -n $(TEST_JOBS) --dist loadfile

check: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q -m "not slow and not wheel" $(FAST_TESTS)

format: $(INSTALLED)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=...")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing the versions of constraints.txt into .venv, once; this takes a few minutes"
	$(BIN)/python -m pip install -qq --disable-pip-version-check --constraint constraints.txt --editable '.[$(EXTRAS)]'
	@touch $@

# After adding a dependency: install it into .venv, then write down what the tests ran with.
constraints:
	$(BIN)/python -m pip list --format=freeze --exclude smash-export --exclude pip --exclude setuptools \
		| sed 's/+cpu$$//' > constraints.tmp
	{ sed -n '/^#/p' constraints.txt; cat constraints.tmp; } > constraints.new
	rm constraints.tmp && mv constraints.new constraints.txt

# A runtime that cannot share an environment with the others gets its own and is tested there:
#   make target-executorch    make target-litert
target-%: deploy_targets/environments/%.txt $(INSTALLED)
	test -x .venv-$*/bin/python || $(PYTHON) -m venv .venv-$*
	.venv-$*/bin/python -m pip install -qq --disable-pip-version-check --requirement $<
	$(BIN)/python -m pytest -q tests/deploy_targets/test_own_environments.py -k $*

# NVIDIA's builder without a GPU. Where this is there, make test builds engines with it too.
RTX := .venv-tensorrt-rtx
target-tensorrt-rtx: $(RTX)/.installed $(INSTALLED)
	$(BIN)/python -m pytest -q tests/deploy_targets/tensorrt/test_real_builder.py

$(RTX)/.installed: deploy_targets/environments/tensorrt-rtx.txt
	test -x $(RTX)/bin/python || $(PYTHON) -m venv $(RTX)
	$(RTX)/bin/python -m pip install -qq --disable-pip-version-check --requirement $<
	@touch $@

clean:
	rm -rf build dist runs demo-bundle demo-images .pytest_cache .mypy_cache .ruff_cache

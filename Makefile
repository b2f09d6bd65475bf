# Everything that a new user and CI need; each target does all of its own set-up in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RESULTS ?= gpu_results
# OpenMP threads that spin while others want the core turn microseconds into milliseconds.
export OMP_WAIT_POLICY := passive
export PIP_DISABLE_PIP_VERSION_CHECK := 1

CSRC := $(shell find csrc tools -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' -o -name '*.h')

.PHONY: help kernels-hub demo test test-all test-cuda-host test-null-gpu gpu-rehearsal lint format build stubs checkpoint paper-machine whole-tunes static mutants gpu-extension gpu-contact gpu-check wheel docs clean
help:
	@echo 'make demo        simulate a CPU with the shipped model, then train one from scratch; results in demo/'
	@echo 'make test        the tests (under 15 minutes on two cores)'
	@echo 'make test-all    the slow ones as well'
	@echo 'make test-cuda-host  the code for GPUs on the host, with the GPU machine'\''s versions (5 GB, once); docs/profiling.md'
	@echo 'make test-null-gpu  the part of it that needs no kernel'\''s values (under 2 minutes once the packages are there)'
	@echo 'make lint        ruff, mypy and clang-format as checks; make format applies them'
	@echo 'make build       the virtual environment and the extension; then $(BIN)/bgpt-fast --help'
	@echo 'make wheel       a manylinux wheel for each Python at hand, in dist/; the same bytes each time'
	@echo 'make docs        the documentation site, build/docs/index.html; a broken link fails'
	@echo 'make stubs       the types of the extension, bgpt_fast/_C.pyi, from the built extension'
	@echo 'make checkpoint  train the shipped model again (an hour); see examples/cpu_states/README.md'
	@echo 'make paper-machine  train a small model on the paper'\''s own machine (hours; stop it at any moment, run it again to go on)'
	@echo 'make whole-tunes  train a small model to convert whole Irish tunes, ABC to MIDI and back (likewise)'
	@echo 'make static      compile every GPU kernel without a GPU (20 minutes); refreshes docs/kernels.md'
	@echo 'make kernels-hub the Triton ops as a package for Hugging Face'\''s kernels library, in build/kernels-hub; docs/hugging-face.md'
	@echo 'make mutants     plant bugs in a copy of the source, each of which a test must notice; the result is mutants.json'
	@echo 'make gpu-contact on a GPU, in 200 seconds: every kernel at a small size, a few timings; the results go to $(RESULTS)/'
	@echo 'make gpu-check   then, in 500 seconds: timings, tests and sanitizers of what is right in the contact'
	@echo 'make gpu-rehearsal  the contact, whole, on the null GPU (minutes)'
	@echo 'make gpu-extension  the extension for another machine with a GPU, to be copied there with the checkout'

demo: $(VENV)/.built
	$(BIN)/python examples/cpu_states/demo.py

test: $(VENV)/.tools $(VENV)/.built
	$(BIN)/python -m pytest -n 2 -m "not slow"

test-all: $(VENV)/.tools $(VENV)/.built
	$(BIN)/python -m pytest -n 2

# The environment is made in the user's cache folder at the first run, and linked as .venv-cuda. test_offsets.py only reads
# the sources, with clang-tidy, which that environment has not.
test-cuda-host: test-null-gpu
	$(PYTHON) -m tools.null_gpu --no-gpu python -m pytest -n 2 -m "not slow" --ignore tests/kernels/test_offsets.py tests/kernels

test-null-gpu:
	$(PYTHON) -m tools.null_gpu python -m pytest -m "not slow" tests/null_gpu

lint: $(VENV)/.tools $(VENV)/.built
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(CSRC)

format: $(VENV)/.tools
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CSRC)

build: $(VENV)/.built

# With CUDA wherever nvcc is found; BGPT_FAST_CUDA=OFF make wheel builds for the CPU alone. make wheel ARGS=--list shows the
# Pythons, and why others are skipped; make wheel ARGS=python3.12 is for that one.
wheel:
	$(PYTHON) -m tools.wheels $(ARGS)

docs: $(VENV)/.docs $(VENV)/.built
	$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going -c docs . build/docs

stubs: $(VENV)/.tools $(VENV)/.built
	PYTHONPATH=. $(BIN)/python tools/stubs.py

checkpoint: $(VENV)/.built
	$(BIN)/python examples/cpu_states/train_checkpoint.py

# Options go through ARGS, as in: make paper-machine ARGS="--full --run runs/paper-machine-full".
paper-machine: $(VENV)/.built
	$(BIN)/python examples/cpu_states/paper_machine/train.py $(ARGS)

whole-tunes: $(VENV)/.built
	$(BIN)/python examples/music/whole_tunes/train.py $(ARGS)

static: $(VENV)/.tools $(VENV)/.built
	$(BIN)/python -m tools.static_check

kernels-hub:
	rm -rf build/kernels-hub
	$(PYTHON) -m tools.kernels_hub build/kernels-hub

# Words go through ARGS, as in: make mutants ARGS="training kernels/layer_norm".
mutants: $(VENV)/.tools $(VENV)/.built
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m tools.mutants --json mutants.json $(ARGS)

# Without a virtual environment and without network: PYTHON is one that has torch, triton, pytest and transformers.
gpu-contact:
	$(PYTHON) -m tools.gpu_check contact --output $(RESULTS)

gpu-check:
	$(PYTHON) -m tools.gpu_check check --output $(RESULTS)

# On the null GPU every item runs, but no values can be right.
gpu-rehearsal:
	$(PYTHON) -m tools.null_gpu python -m pytest tests/null_gpu/test_contact.py

# For the Python version of the machine with the GPU: make gpu-extension GPU_PYTHON=python3.12.
GPU_PYTHON ?= $(PYTHON)
gpu-extension:
	$(PYTHON) -m tools.null_gpu --no-gpu python -m tools.gpu_check.extension --python $(GPU_PYTHON)

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "bgpt_fast needs Python 3.11 or newer as $(PYTHON). Try: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "$(PYTHON) cannot make a virtual environment; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }

# pip's default resolver output is long; a failing install prints its own error.
$(VENV)/.packages: requirements/demo.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet -r requirements/demo.txt
	@touch $@

$(VENV)/.tools: requirements/test.txt $(VENV)/.packages
	$(BIN)/python -m pip install --quiet -r requirements/test.txt
	@touch $@

# What the documentation site needs; .ci/run makes it alone first.
$(VENV)/.docs: requirements/docs.txt $(VENV)/.packages
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements/docs.txt
	@touch $@

$(VENV)/.built: $(VENV)/.packages setup.py CMakeLists.txt pyproject.toml $(CSRC)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

clean:
	rm -rf build demo bgpt_fast/*.so $(VENV)/.built

# make demo [INPUT=path]   the main job: G-buffers and the clip relit by three lights, in demo-out/
# make test                set-up, then the tests
# make setup               only the set-up: .venv with the exact versions of requirements.lock
# make lint                ruff and the import contracts
# make lock                record the versions installed in .venv in requirements.lock
# make clean               remove the virtual environment, caches and the demo's output
#
# Needs Python 3.11 to 3.13, make and git; everything else goes into .venv. Options:
#   TORCH_INDEX=https://download.pytorch.org/whl/cu130   a GPU build of torch (remembered until `make clean`)
#   PYTHON=/path/to/python                               the Python that .venv is made with
#   OUT=folder                                           where the demo writes
#   ARGS="-k light"                                      more arguments for pytest (make test) or the demo (make demo)

VENV := .venv
BIN := $(VENV)/bin
TORCH_INDEX ?= $(or $(shell cat $(VENV)/.torch-index 2>/dev/null),https://download.pytorch.org/whl/cpu)
READY := $(VENV)/.ready-$(notdir $(TORCH_INDEX))
OUT ?= demo-out
export PYTHON

.PHONY: demo test setup lint lock clean

setup: $(READY)

$(READY): pyproject.toml requirements.lock scripts/setup.sh
	@sh scripts/setup.sh $(VENV) $(TORCH_INDEX)

demo: $(READY)
	@$(BIN)/python -m diffusion_renderer demo $(if $(INPUT),"$(INPUT)") -o "$(OUT)" $(ARGS)

test: $(READY)
	@$(BIN)/python -m pytest $(ARGS)

lint: $(READY)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports

lock: $(READY)
	@$(BIN)/python scripts/lock.py

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .import_linter_cache src/*.egg-info demo-out

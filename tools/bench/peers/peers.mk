# The peers that tools/bench/peers measures seqrt against live in an environment of their own.
# Included by the Makefile at the root, whose variables it uses.

# Processes that compile llama.cpp at a time; with two it takes about ten minutes.
PEERS_JOBS ?= 2

.PHONY: peers bench-peers

peers: .venv-peers/installed  ## Install the peers (compiles llama.cpp for this processor)

.venv-peers/installed: tools/bench/peers/requirements.txt
	$(PYTHON) -m venv .venv-peers
	CMAKE_BUILD_PARALLEL_LEVEL=$(PEERS_JOBS) CMAKE_ARGS="-DGGML_NATIVE=ON" \
		.venv-peers/bin/python -m pip install $(PIP_ARGS) -r tools/bench/peers/requirements.txt
	@touch $@

bench-peers: peers build/demo/int8/seqrt.json build/demo/source/seqrt.json  ## Measure seqrt and its peers, interleaved
	$(BIN)/python -m tools.bench.peers $(DEMO_GGUF) --bundle int8=build/demo/int8 --bundle source=build/demo/source \
		--output build/peers/report.json

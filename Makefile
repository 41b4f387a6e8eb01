# Every task of this repository. `make` alone lists them.
# Needs: cargo (rustup's stable toolchain), a C++ compiler, python3 with pip. Nothing is written outside this folder
# except what cargo and pip keep in their own caches.

SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv/bin/python
# The folder `make bench` measures on; any Stable Diffusion folder will do.
MODEL ?= assets/emoji-sd

# Tests already run side by side on all cores; torch threads of their own would only wait for each other.
TEST_THREADS = OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} OMP_WAIT_POLICY=passive

# `$(call need,program,how to get it)`: one clear line when a program is missing.
need = @command -v $(1) >/dev/null 2>&1 || { echo "make: $(1) is missing. $(2)" >&2; exit 1; }

.PHONY: help setup build demo test interop parity judge-parity judge-bench bench bench-sd15 bench-sd15-512 bench-memory bench-methods bench-sdxl gpu-check dry-run-check python emoji judges method-curves fmt clippy doc check clean tools

help: ## list the targets
	@echo "seedpo: align text-to-image diffusion models with preferences"; echo
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## /\1\t/' | awk -F'\t' '{printf "  make %-15s %s\n", $$1, $$2}'

tools:
	$(call need,cargo,Install Rust with rustup (https://rustup.rs).)
	$(call need,$(PYTHON),Install Python 3.9 or newer (Debian: apt install python3 python3-pip); or name yours: make PYTHON=/path/to/python.)
	@command -v $${CXX:-c++} >/dev/null 2>&1 || { echo "make: no C++ compiler ($${CXX:-c++}) found. Install one (Debian: apt install g++), or set CXX." >&2; exit 1; }

setup: tools ## fetch libtorch into .libtorch (545 MB once; skipped where one is found)
	@$(PYTHON) scripts/setup_libtorch.py

build: setup ## build target/release/seedpo
	cargo build --release --bin seedpo

demo: build ## align the built-in model and print where the report is (10 minutes after the build)
	@bash scripts/demo.sh

test: setup ## formatting, clippy, docs and every test
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps
	$(TEST_THREADS) cargo test --workspace

check: setup ## the quick part of `make test`: formatting and clippy
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings

fmt: tools ## format the Rust code
	cargo fmt --all

clippy: setup ## clippy alone
	cargo clippy --workspace --all-targets -- -D warnings

doc: setup ## the documentation of every public item
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps

python: ## make .venv with PyTorch, diffusers and peft (needed by interop, bench and fixtures only)
	$(call need,$(PYTHON),Install Python 3.11 or newer with pip; or name yours: make PYTHON=/path/to/python.)
	@test -x $(VENV) || $(PYTHON) -m venv .venv
	@if $(VENV) -c 'import torch, diffusers, transformers, peft, accelerate' 2>/dev/null; then echo "python: .venv is ready"; \
	else $(VENV) -m pip install --quiet --requirement python/requirements.txt && echo "python: .venv is ready"; fi

interop: build python ## show with the real diffusers and peft that models and adapters pass both ways
	$(VENV) python/interop.py
	$(VENV) python/interop_formats.py
	$(VENV) python/interop_hub.py
	$(VENV) python/interop_judges.py
	$(VENV) python/interop_full.py

parity: build python ## the U-Nets of SD 1.5 and SDXL at full width against diffusers (11 GB of memory, 6 GB of disk)
	$(VENV) python/parity_full.py

judge-parity: build python ## the judges at full width against their references (6 GB of memory and disk)
	$(VENV) -m pip install --quiet --no-deps open_clip_torch torchvision==0.26.0 ftfy regex wcwidth timm
	$(VENV) python/judge_parity.py --bf16 --head crates/judge/tests/fixtures/sac+logos+ava1-l14-linearMSE.pth

judge-bench: build python ## pictures a second of each judge, beside PyTorch
	$(VENV) -m pip install --quiet --no-deps open_clip_torch torchvision==0.26.0 ftfy regex wcwidth timm
	$(VENV) python/judge_bench.py

bench: build python ## the speed table on the built-in model, against PyTorch, in turns
	$(VENV) python/bench.py emoji --model $(MODEL) --update docs/performance.md

bench-sd15: build python ## the same on random weights of Stable Diffusion 1.5's size, 256 x 256
	$(VENV) python/bench.py sd15 --update docs/performance.md

bench-sd15-512: build python ## the same at 512 x 512 (slow on a CPU)
	$(VENV) python/bench.py sd15-512 --update docs/performance.md

bench-memory: build python ## one SEE-SPO update at 512 x 512: peak memory with and without the economies
	$(VENV) python/bench.py memory --update docs/performance.md

bench-methods: build python ## one update of every method on the folder of Stable Diffusion 1.5's size
	$(VENV) python/bench.py methods --update docs/performance.md

bench-sdxl: build python ## an update on a folder of Stable Diffusion XL's size (7 GB of disk, 12 GB of memory)
	$(VENV) python/bench.py sdxl --update docs/performance.md

dry-run-check: build python ## hold the dry run's memory and time against a real run, Stable Diffusion 1.5's size included
	@test -d target/models/sd15 || $(VENV) python/make_models.py sd15 target/models/sd15 --dtype f16
	$(VENV) python/dry_run_check.py --sd15 target/models/sd15

gpu-check: build ## on a machine with a CUDA GPU: parity, updates, speed (scripts/gpu-check --help)
	scripts/gpu-check --update docs/performance.md

emoji: setup ## fetch the emoji data that `seedpo pretrain` learns from
	@$(PYTHON) scripts/fetch_emoji.py

judges: build emoji ## train the judges of the built-in world into runs/judges (half an hour on one core)
	@bash scripts/train_judges.sh

method-curves: build python ## run every method's preset on the built-in model: tables and pictures of docs/methods (25 minutes)
	@bash scripts/method_curves.sh
	$(VENV) python/method_curves.py

clean: ## remove build output (keeps .libtorch, .venv and runs/)
	cargo clean

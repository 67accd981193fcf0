# The stages in order. No hyperparameters here: they are in configs/ and scripts/lockstep/settings/schema.py.
#   make train CONFIG=configs/mine.yaml ARGS="--train.learning_rate 1e-4"

CONFIG ?= configs/demo.yaml
ARGS   ?=
PYTHON ?= python3
ACCEL  ?= $(shell nvidia-smi >/dev/null 2>&1 && echo cuda || echo cpu)

SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -c
.DELETE_ON_ERROR:
.NOTPARALLEL:
.DEFAULT_GOAL := help

# $(call say,English,Chinese): a message in the language of the locale, as scripts/lockstep/text/language.py chooses it
comma := ,
say = $(if $(filter zh% Zh% ZH%,$(firstword $(LANGUAGE) $(LC_ALL) $(LC_MESSAGES) $(LANG))),$(2),$(1))
# $(call quoted,text): one word of a shell's
quoted = '$(subst ','\'',$(1))'
define newline


endef
$(if $(findstring $(newline),$(ARGS)$(CONFIG)),$(error $(call say,ARGS and CONFIG must each be one line,ARGS 和 CONFIG 都只能有一行)))

PY    := .venv/bin/python
LOCK  := $(if $(filter cuda,$(ACCEL)),requirements.lock,requirements-cpu.lock)
FLAGS := $(if $(CONFIG),--config $(CONFIG)) $(ARGS)
# Earlier stages that a goal needs get its config, and of its arguments those that they read.
VALUE := ("[^"]*"|'[^']*'|\\.|[^ "'\\])+
RUN   := $(shell grep -oE -- $(call quoted,--(run|lang|method|serve\.mode|(model|data|lora|quantization|train|adapter|merge)\.[a-z_0-9]+)[= ]+$(VALUE)) <<<$(call quoted,$(ARGS)))
UPSTREAM := $(if $(CONFIG),--config $(CONFIG)) $(RUN)
TORCH_CPU := $(shell grep -E '^torch==' requirements-cpu.txt)

ifneq ($(ACCEL),cuda)
# torch's CPU build is on PyTorch's own index, if the configured one lacks it
TORCH_FIRST := { $(PY) -m pip install --quiet --no-deps $(TORCH_CPU) 2>/dev/null || \
    $(PY) -m pip install --quiet --no-deps $(TORCH_CPU) --index-url https://download.pytorch.org/whl/cpu; } &&
endif
# Lock .venv, open as 9. A stage that runs in it holds it (cli.py), and so does another make.
ALONE := { $(PYTHON) -c 'import fcntl; fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)' 2>/dev/null || \
    { echo "$(call say,error: .venv is in use: another make is installing packages$(comma) or programs still run from it while it must be renewed; wait for them to end,错误：.venv 正在使用：另一个 make 在安装软件包，或者还有程序在用它而它需要重建；请等它们结束)" >&2; exit 2; }; }
# Who looks after what runs takes the packages that are there.
LOOK := $(if $(wildcard .venv/*.stamp),,setup)

# The demo's rows, which its config names.
TOY := $(if $(filter %configs/demo.yaml,$(CONFIG)),$(addprefix data/toy/,train.jsonl validation.jsonl test.jsonl))

# $(call parse,script): find a mistyped argument or a wrong path of the goal before anything else runs.
parse = @$(1) $(FLAGS) --check || [ $$? -eq 3 ]
# $(call need,script [flags],goal): run a goal first if the output of its script is not there.
need = @$(PY) $(1) $(UPSTREAM) --check; case $$? in 0) ;; 3) $(MAKE) --no-print-directory $(2) ARGS=$(call quoted,$(subst $$,$$$$,$(RUN))) ;; *) exit 2 ;; esac
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help setup download data train tensorboard merge serve serve-lora serve-detached status stop client curl evaluate report chat monitor verify bundle doctor demo bench test test-long test-e2e test-faults test-gpu test-clients test-llamacpp lint format lock lock-check clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "  CONFIG=$(CONFIG)  ARGS='--section.key value …'  PYTHON=$(PYTHON)  ACCEL=$(ACCEL)"

setup: .venv/$(ACCEL).stamp ## make .venv and install the locked packages (CUDA where nvidia-smi answers)

.venv/$(ACCEL).stamp: $(LOCK)
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; v in ((3, 11), (3, 12)) or sys.exit(f"$(call say,error: Lockstep runs on Python 3.11 and 3.12$(comma) and $(PYTHON) is {v[0]}.{v[1]}: set PYTHON=python3.11,错误：Lockstep 需要 Python 3.11 或 3.12，而 $(PYTHON) 是 {v[0]}.{v[1]}：请设 PYTHON=python3.11)")'
	@mkdir -p .venv && exec 9<.venv && $(ALONE) && echo "$(call say,installing the packages of $(LOCK) …,正在安装 $(LOCK) 里的软件包……)" && \
	$(PYTHON) -m venv --clear .venv && $(TORCH_FIRST) $(PY) -m pip install --quiet --no-deps -r $(LOCK)
	@touch $@

.venv/dev.stamp: .venv/$(ACCEL).stamp requirements-dev.lock
	$(PY) -m pip install --quiet --no-deps -r requirements-dev.lock
	@touch $@

# one run writes all three: a rule with several patterns is one rule
data/toy/train%jsonl data/toy/validation%jsonl data/toy/test%jsonl: data/build_toy_dataset.py | setup
	$(PY) data/build_toy_dataset.py

download: setup ## 00 fetch and verify the base model
	$(PY) scripts/00_download_model.py $(FLAGS)

data: setup $(TOY) ## 01 rows → exactly the tensors that training sees
	$(call parse,$(PY) scripts/01_data_collator.py)
	$(call need,scripts/00_download_model.py,download)
	$(PY) scripts/01_data_collator.py $(FLAGS)

train: setup $(TOY) ## 02 train the adapter
	$(call parse,$(PY) scripts/02_train_qlora.py)
	$(call need,scripts/00_download_model.py,download)
	$(call need,scripts/01_data_collator.py,data)
	$(PY) scripts/02_train_qlora.py $(FLAGS)

tensorboard: setup ## watch the curves of all runs in a browser, at http://127.0.0.1:6006
	.venv/bin/tensorboard --logdir $${LOCKSTEP_HOME:-.}/outputs --host 127.0.0.1 $(ARGS)

merge: setup $(TOY) ## 03 merge the adapter, and measure that nothing changed
	$(call parse,$(PY) scripts/03_merge_lora.py)
	$(call need,scripts/00_download_model.py --to-merge,download)
	$(call need,scripts/01_data_collator.py,data)
	$(if $(findstring --adapter.path,$(ARGS)),,$(call need,scripts/02_train_qlora.py,train))
	$(PY) scripts/03_merge_lora.py $(FLAGS)

serve: setup $(TOY) ## serve the merged model with vLLM, in the foreground
	$(call parse,PYTHON=$(PY) scripts/serve_vllm.sh)
	$(call need,scripts/03_merge_lora.py,merge)
	PYTHON=$(PY) ACCEL=$(ACCEL) scripts/serve_vllm.sh $(FLAGS)

serve-lora: setup $(TOY) ## serve base + adapter with vLLM, in the foreground
	$(call parse,PYTHON=$(PY) scripts/serve_vllm.sh)
	$(call need,scripts/00_download_model.py,download)
	$(if $(findstring --adapter.path,$(ARGS)),$(call need,scripts/01_data_collator.py,data),$(call need,scripts/02_train_qlora.py,train))
	$(PY) scripts/03_merge_lora.py --base $(UPSTREAM)
	PYTHON=$(PY) ACCEL=$(ACCEL) scripts/serve_vllm.sh --serve.mode lora $(FLAGS)

serve-detached: setup $(TOY) ## the same in the background: returns once the endpoint is open; see status, stop
	$(call parse,PYTHON=$(PY) scripts/serve_vllm.sh)
	$(call need,scripts/03_merge_lora.py,merge)
	PYTHON=$(PY) ACCEL=$(ACCEL) scripts/serve_vllm.sh --detach $(FLAGS)

status: $(LOOK) ## is the run served, is it open, and what did the gate find?
	@PYTHON=$(PY) scripts/serve_vllm.sh --status $(UPSTREAM) || [ $$? -eq 3 ]

stop: $(LOOK) ## stop the server of the run
	@PYTHON=$(PY) scripts/serve_vllm.sh --stop $(UPSTREAM)

client: setup ## 04 ask the server; ARGS='"a question" --stream', --chat, --batch FILE
	$(PY) scripts/04_client_openai.py $(if $(CONFIG),--config $(CONFIG)) $(or $(ARGS),$(if $(TOY),"Answer as Lady Shen Qingyi." --input "Who are you?",--example) --stream)

curl: setup ## the same with curl, with a question of the run's own data
	@set -e; line=$$($(PY) scripts/04_client_openai.py $(FLAGS) --curl); \
	    echo "$$line"; eval "$$line"; echo

evaluate: setup $(TOY) ## 05 base and tuned model on the test rows: verdict and report
	$(call parse,$(PY) scripts/05_evaluate.py)
	$(call need,scripts/00_download_model.py,download)
	$(call need,scripts/01_data_collator.py,data)
	$(call need,scripts/03_merge_lora.py,merge)
	ACCEL=$(ACCEL) $(PY) scripts/05_evaluate.py $(FLAGS)

report: setup ## write the report again, from what is there
	$(PY) scripts/05_evaluate.py --report $(FLAGS)

chat: setup ## 06 a chat page in the browser, at http://127.0.0.1:7860
	$(PY) scripts/06_chat_ui.py $(FLAGS)

doctor: ## what is wrong with this machine, its packages or the run, and what mends it; ARGS='--check FILE …' looks at your own scripts
	@$(shell .venv/bin/python -c '' 2>/dev/null && echo $(PY) || echo $(PYTHON)) scripts/doctor.py $(FLAGS)

monitor: $(LOOK) ## watch the server: requests, tokens/s, TTFT, ITL, cache; ARGS=--once for one line of JSON
	@$(PY) scripts/monitor.py $(FLAGS)

verify: $(LOOK) ## is it the trained model? ARGS="--base X --adapter Y --merged Z --endpoint URL", whoever made them
	@$(PY) scripts/verify.py $(ARGS)

bundle: setup $(TOY) ## pack what a deployment is verified against elsewhere; ARGS="--key key.pem" signs it
	$(call parse,$(PY) scripts/bundle.py)
	$(call need,scripts/03_merge_lora.py,merge)
	$(PY) scripts/bundle.py $(FLAGS)

demo: setup ## the whole pipeline on the embedded model, with base and tuned answers side by side
	$(if $(ARGS),$(error make demo takes no ARGS: run the stages one by one, with CONFIG=$(CONFIG)))
	ACCEL=$(ACCEL) $(PY) scripts/demo.py

bench: setup $(TOY) ## put the server under load, merged and as base + adapter: tokens/s, TTFT, ITL, latency
	$(call need,scripts/03_merge_lora.py,merge)
	$(PY) scripts/03_merge_lora.py --base $(UPSTREAM)
	ACCEL=$(ACCEL) $(PY) benchmarks/serve.py $(FLAGS)

test: .venv/dev.stamp ## the tests (CPU, no network)
	CUDA_VISIBLE_DEVICES= $(PY) -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder -m "not slow and not e2e and not gpu and not faults and not long" $(ARGS)

test-long: .venv/dev.stamp ## whole trainings that are killed, interrupted and spread over processes
	CUDA_VISIBLE_DEVICES= $(PY) -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder -m "long and not slow" $(ARGS)

test-e2e: .venv/dev.stamp ## a tiny model through all stages and the real vLLM server
	$(PY) -m pytest -m "e2e and not slow" $(ARGS)

test-faults: .venv/dev.stamp ## tests that kill and starve stages on purpose, beyond those of make test
	$(PY) -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder -m faults $(ARGS)

test-gpu: .venv/dev.stamp ## what only an NVIDIA GPU can show
	$(PY) -m pytest -m gpu $(ARGS)

.venv-clients/stamp: requirements-clients.lock
	$(PYTHON) -m venv --clear .venv-clients && .venv-clients/bin/python -m pip install --quiet --no-deps -r requirements-clients.lock
	@touch $@

tests/clients/node_modules/stamp: tests/clients/package-lock.json
	npm ci --prefix tests/clients --no-audit --no-fund --ignore-scripts
	@touch $@

.venv-llamacpp/stamp: requirements-llamacpp.lock
	$(PYTHON) -m venv --clear .venv-llamacpp && .venv-llamacpp/bin/python -m pip install --quiet --no-deps -r requirements-llamacpp.lock
	@touch $@

test-llamacpp: .venv/dev.stamp .venv-llamacpp/stamp ## verify, on llama.cpp's own server
	LLAMACPP_PYTHON=$(CURDIR)/.venv-llamacpp/bin/python $(PY) -m pytest tests/e2e/test_verify_llama_cpp.py -m "e2e and slow" $(ARGS)

test-clients: .venv/dev.stamp .venv-clients/stamp tests/clients/node_modules/stamp ## other people's clients, as docs/clients.md shows them, with the real vLLM
	$(PY) -m pytest tests/clients -m "e2e and slow" $(ARGS)

lint: .venv/dev.stamp ## ruff, mypy and shellcheck
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	$(PY) -m mypy scripts/lockstep
	for stage in scripts/[0-9]*.py scripts/demo.py scripts/doctor.py scripts/monitor.py scripts/verify.py scripts/bundle.py data/build_toy_dataset.py; do $(PY) -m mypy $$stage || exit 1; done
	.venv/bin/shellcheck scripts/*.sh findings/*.sh .ci/run

format: .venv/dev.stamp ## format the code
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

# One resolution for all supported Pythons on Linux; the marker that says so on every line is dropped.
RESOLVE = .venv/bin/uv pip compile --quiet --universal --python-version 3.11 --no-header --no-annotate $(1) \
    | sed -E "s/ and (implementation_name|platform_machine|platform_python_implementation|sys_platform) == '[A-Za-z0-9_]+'//g; s/ ; python_full_version < '3.13'$$//"
# The CPU set is resolved without torch, whose own needs stand here instead.
RESOLVE_CPU = { $(call RESOLVE,--override overrides-cpu.txt $(1) requirements-cpu.txt - <<<$$'fsspec\nnetworkx\nsympy') && echo "$(TORCH_CPU)"; }
RESOLVE_DEV = $(call RESOLVE,--override overrides-cpu.txt -c <(grep -v '^torch==' requirements-cpu.lock) $(1) requirements-dev.txt) | grep -vxFf requirements-cpu.lock
# Nothing else shares the clients' environment.
RESOLVE_CLIENTS = $(call RESOLVE,$(1) requirements-clients.txt)
RESOLVE_LLAMACPP = $(call RESOLVE,$(1) requirements-llamacpp.txt)

lock: .venv/dev.stamp ## resolve the locks anew
	$(call RESOLVE,requirements.txt) > lock.new && mv lock.new requirements.lock
	$(call RESOLVE_CPU) > lock.new && mv lock.new requirements-cpu.lock
	$(call RESOLVE_DEV) > lock.new && mv lock.new requirements-dev.lock
	$(call RESOLVE_CLIENTS) > lock.new && mv lock.new requirements-clients.lock
	$(call RESOLVE_LLAMACPP) > lock.new && mv lock.new requirements-llamacpp.lock

lock-check: .venv/dev.stamp ## let the resolver confirm the locks, CUDA's too; needs no GPU and installs nothing
	$(call RESOLVE,requirements.txt -c requirements.lock) | diff requirements.lock -
	$(call RESOLVE_CPU,-c <(grep -v '^torch==' requirements-cpu.lock)) | diff requirements-cpu.lock -
	$(call RESOLVE_DEV,-c requirements-dev.lock) | diff requirements-dev.lock -
	$(call RESOLVE_CLIENTS,-c requirements-clients.lock) | diff requirements-clients.lock -
	$(call RESOLVE_LLAMACPP,-c requirements-llamacpp.lock) | diff requirements-llamacpp.lock -

clean: ## remove outputs/ of the demo and caches; models and other runs stay
	rm -rf "$${LOCKSTEP_HOME:-.}/outputs/demo" .pytest_cache .mypy_cache .ruff_cache
	find scripts tests -name __pycache__ -prune -exec rm -rf {} +

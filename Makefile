PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/uv pip install --quiet --compile-bytecode --constraint requirements.lock
LOCK := $(BIN)/uv pip compile --quiet --universal --upgrade --python-version 3.11 --no-header \
	--no-annotate
PYTHONS := 3.12 3.13
PORTABLE := $(addprefix tests/,formats/test_uniform.py stats/test_measure.py records/test_record.py \
	records/test_table.py test_conf.py test_measurement.py)
ANSWERS := dist=file/onnx dist.path=.venv/demo/magika/models/standard_v3_3/model.onnx \
	model=onnx model.inputs=.venv/demo/inputs.npz hydra.sweep.dir=multirun/answers
PACKAGED := pyproject.toml $(shell find conf hydra_plugins quantlab -type f -not -name '*.pyc')
.DEFAULT_GOAL := help
.PHONY: docs help lab remedies levels demo test test-all pythons lint mutants chaos chaos-long bench bench-sweep slurm llama chromium ray mlflow recipes lock clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 16

lab: .venv/lab ## run the lab's sweep and print its table (results land in multirun/lab)
	@rm -rf multirun/lab/*/
	@$(BIN)/python run.py experiment=lab

remedies: .venv/lab ## store the lab's tensors in other formats (results land in multirun/remedies)
	@rm -rf multirun/remedies/*/
	@$(BIN)/python run.py experiment=remedies

levels: .venv/lab ## draw the levels of every element grid into docs/levels.png
	@$(BIN)/python docs/levels.py

demo: .venv/demo ## measure a voice detector in 4 and 8 bits and as llama.cpp's, and ask a classifier of files
	@rm -rf multirun/demo/*/ multirun/demo-gguf/*/ multirun/answers/*/
	@$(BIN)/python run.py -m dist=file/safetensors \
		dist.path=.venv/demo/silero_vad/data/silero_vad_16k.safetensors \
		mode=sym,asym n_bits=4,8 hydra.sweep.dir=multirun/demo
	@$(BIN)/python docs/write_gguf.py .venv/demo/silero_vad/data/silero_vad_16k.safetensors .venv/demo \
		q8_0 q4_0
	@$(BIN)/python run.py -m dist=file/gguf dist.path=.venv/demo/silero_vad_16k-F16.gguf mode=file/gguf \
		mode.path=.venv/demo/silero_vad_16k-q8_0.gguf,.venv/demo/silero_vad_16k-q4_0.gguf \
		hydra.sweep.dir=multirun/demo-gguf
	@$(BIN)/python docs/write_inputs.py .venv/demo/inputs.npz
	@$(BIN)/python run.py -m $(ANSWERS) mode=sym block=group block.axis=input block.scale=float16 \
		n_bits=4,5,6,8 model.each=true
	@$(BIN)/quantlab plan multirun/answers --by kl --bits 5
	@$(BIN)/python run.py -m $(ANSWERS) mode=plan mode.path=multirun/answers/plan.json

test: .venv/dev .venv/demo ## run the tests but for the slow ones
	@$(BIN)/pytest -m "not slow" --hypothesis-profile=quick

test-all: .venv/dev .venv/demo .venv/wheel ## run every test, with the engines that are here
	@$(BIN)/pytest --durations=15

pythons: $(PYTHONS:%=.venv/python%) ## run tests of each room under the other Pythons that are here
	@for version in $(PYTHONS); do \
		test ! -e .venv/python$$version || .venv/python$$version/bin/pytest -q -m "not slow" --hypothesis-profile=quick $(PORTABLE) || exit 1; done

slurm: ## start a one-node Slurm for the tests (Debian's packages, needs root)
	@tests/slurm.sh .venv/slurm

llama: ## build llama.cpp's llama-quantize for the tests (2 minutes, needs a C++ compiler)
	@tests/llama.sh .venv/llama

chromium: ## install the browser of the tests (Debian's package, needs root)
	@command -v chromium >/dev/null || { apt-get update -qq && apt-get install -qq --no-install-recommends chromium >/dev/null; }

recipes: .venv/recipes ## install the packages that recipes are for, in an environment of their own (6 GB)

ray: .venv/ray ## install Ray for the tests, in an environment of its own

mlflow: .venv/mlflow ## install MLflow's server for the tests, in an environment of its own

lint: .venv/dev ## check style, format and types
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy

docs: .venv/dev ## build the documentation as a site, into .venv/site; a link that leads nowhere is an error
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

mutants: .venv/dev ## change the numerics in small ways, and print the share that the tests notice (30 minutes)
	@$(BIN)/mutmut run >/dev/null
	@$(BIN)/mutmut results
	@$(BIN)/mutmut export-cicd-stats >/dev/null
	@$(BIN)/python -c 'import json; it = json.load(open("mutants/mutmut-cicd-stats.json")); \
		print("{killed} of {total} mutants killed, {survived} survived".format(**it))'

chaos: .venv/dev ## kill, starve and mislead small sweeps in every way, and count what is lost (15 minutes)
	@$(BIN)/python benchmarks/chaos.py

chaos-long: .venv/dev ## the same of 10,000 runs (33 minutes)
	@$(BIN)/python benchmarks/chaos.py --runs 10000

bench: .venv/dev ## print the benchmark tables (torch joins in where it is installed)
	@$(BIN)/python benchmarks/throughput.py
	@$(BIN)/python benchmarks/formats.py
	@$(BIN)/python benchmarks/stored.py
	@$(BIN)/python benchmarks/aggregate.py
	@$(BIN)/python benchmarks/plans.py
	@$(BIN)/python benchmarks/answers.py

bench-sweep: .venv/dev ## print what 300 runs take beside a bare Hydra app, and parts beside a whole (8 minutes)
	@$(BIN)/python benchmarks/sweep.py
	@$(BIN)/python benchmarks/parts.py

lock: .venv/dev ## resolve the newest versions into requirements.lock
	@$(LOCK) pyproject.toml --extra joblib --extra slurm --extra safetensors --extra gguf --extra onnx --extra ggml --extra fast --extra hub --extra mlflow --extra parquet --group dev --group docs \
		--output-file requirements.lock
	@$(LOCK) pyproject.toml --extra ray --output-file requirements-ray.lock
	@sed -n 's/^mlflow-skinny/mlflow/p' requirements.lock | $(LOCK) - --output-file requirements-mlflow.lock

# The Slurm of the tests runs from a file below .venv; most often there is none to shut down.
clean: ## remove the environment and every cache
	@SLURM_CONF=$(CURDIR)/.venv/slurm/slurm.conf timeout 5 scontrol shutdown >/dev/null 2>&1 || true
	@rm -rf .venv .coverage* .hypothesis .mypy_cache .pytest_cache .ruff_cache

.venv/lab: pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "quantlab needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	@$(PYTHON) -m venv .venv
	@$(BIN)/pip install --quiet --disable-pip-version-check --constraint requirements.lock uv
	@$(INSTALL) --python .venv --editable .
	@touch $@

.venv/demo: .venv/lab
	@$(INSTALL) --python .venv --editable '.[safetensors,gguf,ggml,onnx]'
	@$(INSTALL) --no-deps --target $@ silero-vad==6.2.3 magika==1.0.3 g2p-en==2.1.0
	@touch $@

.venv/dev: .venv/lab
	@$(INSTALL) --python .venv --editable '.[joblib,slurm,safetensors,gguf,onnx,ggml,fast,hub,mlflow,parquet]' --group dev --group docs
	@touch $@

.venv/python%: .venv/lab
	@for python in python$* $(HOME)/.pyenv/versions/$*.*/bin/python$*; do \
		"$$python" -m venv $@ 2>/dev/null && break; done; \
	if test -x $@/bin/python; then \
		$(INSTALL) --python $@/bin/python --editable '.[joblib,safetensors,gguf,onnx,ggml,fast]' --group dev && \
		touch $@; \
	else echo "there is no Python $* here"; fi

.venv/wheel: .venv/lab requirements.lock $(PACKAGED)
	@rm -rf .venv/dist $@
	@$(BIN)/uv build --quiet --wheel --out-dir .venv/dist
	@$(PYTHON) -m venv $@
	@$(INSTALL) --python $@ "$$(ls .venv/dist/*.whl)[joblib,slurm]"
	@touch $@

.venv/recipes: tests/data/recipes/load_recipes.py
	@$(PYTHON) -m venv $@
	@$@/bin/pip install --quiet --disable-pip-version-check $$(sed -n 's/^    pip install \(.*\)/\1/p' $<)
	@touch $@

.venv/ray: .venv/lab requirements-ray.lock
	@$(PYTHON) -m venv $@
	@$(BIN)/uv pip install --quiet --constraint requirements-ray.lock --python $@ --editable '.[ray]'
	@touch $@

.venv/mlflow: .venv/lab requirements-mlflow.lock
	@$(PYTHON) -m venv $@
	@$(BIN)/uv pip install --quiet --requirements requirements-mlflow.lock --python $@
	@touch $@

# `make` explains; `make demo` and `make test` need nothing but python3.

VENV     ?= .venv
PYTHON   ?=
DETECTRON2 ?=
CONFIG   ?= configs/Shapes/igvg_tiny.yaml
# igvg_tiny.yaml trains into output/shapes_tiny, another config into a folder of its own name.
OUTPUT   ?= output/$(patsubst igvg_%,shapes_%,$(basename $(notdir $(CONFIG))))
DATASETS ?= $(if $(DETECTRON2_DATASETS),$(DETECTRON2_DATASETS),datasets)
# Without a GPU two processes of one thread train faster than one process of two threads.
PROCESSES ?= $(shell if nvidia-smi -L >/dev/null 2>&1 || [ "$$(getconf _NPROCESSORS_ONLN)" -lt 2 ]; \
               then echo 1; else echo 2; fi)
OPTS     ?=
# Files of each kind that make fuzz tries.
FUZZ     ?= 2000
TESTS    ?=
# Processes that share the tests, one thread each.
JOBS     ?= $(shell n="$$(getconf _NPROCESSORS_ONLN)"; [ "$$n" -lt 4 ] && echo "$$n" || echo 4)

PY := $(VENV)/bin/python
SHAPES = $(DATASETS)/shapes

# Detectron2 imports torch.jit.script and names an option of DDP, which new PyTorch releases announce to replace;
# and DDP tells of gradients of 1x1 convolutions that it has to copy, a few numbers each.
export PYTHONWARNINGS ?= ignore:`torch.jit.script` is deprecated:FutureWarning,ignore:Grad strides do not match bucket view strides:UserWarning,ignore:`broadcast_buffers` is deprecated:FutureWarning

.DEFAULT_GOAL := help
.PHONY: help env data train report demo test test-web test-gpu lint fuzz docs clean clean-all
# Targets of `make demo` build on one another; -j must not reorder them.
.NOTPARALLEL:

help:
	@echo "igvg_d2: generalized visual grounding on Detectron2"
	@echo
	@echo "  make demo       from nothing to a trained, evaluated, visible model (8 minutes of training on 2 cores)"
	@echo "  make test       the tests"
	@echo "  make test-web   those of the web page, in a browser; installs Gradio, Playwright and Chromium"
	@echo "  make test-gpu   those that need a GPU or two, see GETTING_STARTED.md"
	@echo "  make fuzz       FUZZ=$(FUZZ) damaged or hostile files of each kind: annotations, predictions, weights, ..."
	@echo "  make docs       these documents and the docstrings as pages, build/docs/index.html"
	@echo "  make lint       format and style check (dev/linter.sh --fix repairs what a tool can repair)"
	@echo
	@echo "  make env        only create $(VENV) and install; the targets above do it themselves, once"
	@echo "  make data       only generate the Shapes data set"
	@echo "  make train      only train and evaluate; continues an interrupted training run"
	@echo "  make report     only write report.html of a finished training run"
	@echo "  make clean      remove caches and build products; runs, data and environment stay"
	@echo "  make clean-all  remove output/, datasets/shapes/ and .venv/ too"
	@echo
	@echo "Variables, with their present values (make demo NAME=value):"
	@echo "  PYTHON=$(PYTHON)  interpreter for a new environment; empty: the first python3 of 3.10 or newer"
	@echo "  VENV=$(VENV)  folder of the environment"
	@echo "  DETECTRON2=$(DETECTRON2)  pip spec of another Detectron2 (git URL, folder); empty: the registry's"
	@echo "  DATASETS=$(DATASETS)  data set root, as \$$DETECTRON2_DATASETS"
	@echo "  CONFIG=$(CONFIG)"
	@echo "  OUTPUT=$(OUTPUT)"
	@echo "  PROCESSES=$(PROCESSES)  training processes (--num-gpus), CPU processes where there is no GPU"
	@echo "  OPTS=$(OPTS)  config overrides, for instance OPTS=\"SEED 2 SOLVER.IMS_PER_BATCH 32\""
	@echo "  TESTS=$(TESTS)  what make test runs, for instance TESTS=tests/data; empty: all tests"
	@echo "  JOBS=$(JOBS)  processes that share the tests"

env:
	@VENV="$(VENV)" PYTHON="$(PYTHON)" DETECTRON2="$(DETECTRON2)" dev/setup_env.sh

# Does nothing when a complete set of the present generator version is there.
data: env
	@"$(PY)" datasets/prepare_synthetic.py --output "$(SHAPES)" --seed 0

# exec: Ctrl-C is for train_net.py alone, and make waits until it has saved.
train: data
	DETECTRON2_DATASETS="$(DATASETS)" exec "$(PY)" train_net.py --resume --num-gpus "$(PROCESSES)" \
		--config-file "$(CONFIG)" OUTPUT_DIR "$(OUTPUT)" $(OPTS)

report: env
	@"$(PY)" tools/make_report.py "$(OUTPUT)"

# train writes the report itself, unless OPTS says that there are no images to show.
demo: train
	@[ "$(OUTPUT)/report.html" -nt "$(OUTPUT)/metrics.json" ] || $(MAKE) --no-print-directory report

test: env
	OMP_NUM_THREADS=1 "$(PY)" -m pytest -n "$(JOBS)" --dist loadfile --no-loadscope-reorder $(TESTS)

# Chromium comes from the distribution, where apt-get is there and may install; the tests say what is missing.
test-web: env
	@"$(PY)" -c "import sys, importlib.util as u; sys.exit(not all(map(u.find_spec, sys.argv[1:])))" gradio playwright || \
		"$(PY)" -m pip install -qq --no-build-isolation --use-pep517 --editable ".[demo,test-web]"
	@for name in chromium chromium-browser google-chrome google-chrome-stable; do \
		command -v "$$name" >/dev/null && exit 0; done; \
		command -v apt-get >/dev/null && [ "$$(id -u)" -eq 0 ] || exit 0; \
		apt-get update -qq && apt-get install -qq --yes --no-install-recommends chromium || \
		echo "test-web: no browser could be installed; the tests that need one are skipped"
	OMP_NUM_THREADS=1 "$(PY)" -m pytest -rs --durations=5 tests/demo/test_app.py

test-gpu: env
	"$(PY)" -m pytest -v -rs tests/gpu

lint: env
	PATH="$(abspath $(VENV))/bin:$$PATH" dev/linter.sh

fuzz: env
	OMP_NUM_THREADS=1 "$(PY)" dev/fuzz_annotations.py --count $(FUZZ)
	OMP_NUM_THREADS=1 "$(PY)" dev/fuzz_predictions.py --count $(FUZZ)
	OMP_NUM_THREADS=1 "$(PY)" dev/fuzz_files.py --count $(FUZZ)

# -W: a docstring or a link that Sphinx warns of is an error.
docs: env
	@"$(PY)" -c "import myst_parser, sphinx" 2>/dev/null || \
		"$(PY)" -m pip install -qq --no-build-isolation --use-pep517 --editable ".[docs]"
	"$(PY)" -m sphinx -q -W --keep-going -c docs -d build/doctrees . build/docs
	@echo "docs: build/docs/index.html"

clean:
	rm -rf .pytest_cache .mypy_cache build
	find . -path "./$(VENV)" -prune -o -name __pycache__ -type d -print0 | xargs -0 rm -rf

clean-all: clean
	rm -rf output datasets/shapes .venv

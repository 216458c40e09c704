# A new user needs `make train` and `make test` alone. Each sets everything up by itself.
SHELL := /bin/bash
STACK ?= local
SELECT := pulumi stack select --create $(STACK)
RUN := --stack $(STACK) $(if $(YES),--yes --skip-preview)
PROMPT ?= def
ACTIVATE := . tools/activate

.DEFAULT_GOAL := help
.PHONY: help stack-file setup data train up preview review watch serve destroy test test-fast image-test check schema format

help: ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 22
	@echo "  STACK=name chooses a stack (default local), YES=1 asks no questions, PROMPT='text' is the start of train's sample"

setup: ## install the Python environment (.venv) and the Pulumi CLI, unless they are there
	@tools/setup

stack-file:
	@test -f Pulumi.$(STACK).yaml || { echo "STACK=$(STACK): there is no Pulumi.$(STACK).yaml; there are:" Pulumi.*.yaml; exit 2; }

data: stack-file setup ## make the text and the tokens of the stack, so that a run starts at once
	@$(ACTIVATE) && python -m scripts.prepare_data --stack $(STACK)

train: data ## start the run, follow it to its end, show the model
	@$(ACTIVATE) && $(SELECT) && pulumi up --yes --skip-preview --stack $(STACK)
	@$(ACTIVATE) && python -m scripts.watch --stack $(STACK) --curve
	@$(ACTIVATE) && python -m scripts.generate --stack $(STACK) "$(PROMPT)"

up: data ## start the run and return; it continues in the background
	@$(ACTIVATE) && $(SELECT) && pulumi up $(RUN)

preview: data ## show what `make up` would change
	@$(ACTIVATE) && $(SELECT) && pulumi preview --diff --stack $(STACK)

# The review runs even if a policy stops the preview. Its exit code 10, changes that destroy nothing, is no failure.
review: data ## show what `make up` would cost, lose and open, and whether the policies allow it
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

# Files run in the order of the folders. In xdist's own order files of few tests come last, and those take the longest.
test: setup ## run all tests, two files at a time, the tests of a file in their order
	@$(ACTIVATE) && python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-fast: setup ## run the tests that take a second each
	@$(ACTIVATE) && python -m pytest -n 2 -m "not slow"

image-test: setup ## build and run the trainer's image; needs Docker, docker-registry, 5 minutes and 8 GB the first time
	@$(ACTIVATE) && python -m pytest tests/image

check: setup ## check format, lint, types, imports and generated files, as CI does
	@$(ACTIVATE) && ruff format --check . && ruff check . && mypy && lint-imports && python -m scripts.schema --check

schema: setup ## write docs/reference.md and docs/stack.schema.json anew, after a change of a stack file's keys
	@$(ACTIVATE) && python -m scripts.schema

format: setup ## format the code and fix what ruff can
	@$(ACTIVATE) && ruff format . && ruff check --fix .

# `make train` and `make test` are all that a new user needs; each sets everything up by itself.
SHELL := /bin/bash
STACK ?= local
PROMPT ?= def
ACTIVATE := . tools/activate

.DEFAULT_GOAL := help
.PHONY: help setup data train up preview watch destroy test test-fast check format

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 22

setup: ## the Python environment (.venv) and the Pulumi CLI; nothing if they are there
	@tools/setup

data: setup ## the text and the tokens of the stack, made ahead so that a run starts at once
	@$(ACTIVATE) && python -m scripts.prepare_data --stack $(STACK)

train: data ## stand the run up, follow it to its end, show the model
	@$(ACTIVATE) && pulumi stack select --create $(STACK) && pulumi up --yes --skip-preview --stack $(STACK)
	@$(ACTIVATE) && python -m scripts.watch --stack $(STACK) --curve
	@$(ACTIVATE) && python -m scripts.generate --stack $(STACK) "$(PROMPT)"

up: data ## stand the run up and return; it goes on in the background
	@$(ACTIVATE) && pulumi stack select --create $(STACK) && pulumi up --stack $(STACK) $(if $(YES),--yes --skip-preview)

preview: setup ## what `make up` would change
	@$(ACTIVATE) && pulumi stack select --create $(STACK) && pulumi preview --diff --stack $(STACK)

watch: setup ## follow the run
	@$(ACTIVATE) && python -m scripts.watch --stack $(STACK)

destroy: setup ## end the run's machines; models and data stay
	@$(ACTIVATE) && pulumi stack select --create $(STACK) && pulumi destroy --stack $(STACK) $(if $(YES),--yes --skip-preview)

test: setup ## all tests
	@$(ACTIVATE) && python -m pytest

test-fast: setup ## the tests that take a second each
	@$(ACTIVATE) && python -m pytest -m "not slow"

check: setup ## format, lint and types, as CI checks them
	@$(ACTIVATE) && ruff format --check . && ruff check . && mypy

format: setup ## put the code into format and mend what ruff can
	@$(ACTIVATE) && ruff format . && ruff check --fix .

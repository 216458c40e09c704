"""Load a stack file into a checked StackConfig. Every error is one line: the key, what was found, what to do."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from infra.checks.combinations import combination_problems
from infra.checks.google import project_problems, stack_problems
from infra.checks.sharing import sharing_problems
from infra.fleet.fleet import resolve_fleet
from infra.sizing.remedies import memory_problems
from infra.stack.config import PROJECT, ROOT, ConfigError, StackConfig, bucket_url, google_bucket, plain_text
from infra.stack.explain import explain
from infra.stack.keys import DEFAULT_TEXT, StackFile
from infra.stack.reading import stack_values
from trainer.contract import search_space

EXAMPLES = {
    "trainingInput": "trainingInput: {workerCount: 1, hyperparameters: {learningRate: 0.003}}",
    "trainingInput.hyperparameters": "hyperparameters: {learningRate: 0.003, batchSize: 16}",
    "model": "model: {size: gpt2}",
    "data": f"data: {{path: {DEFAULT_TEXT}, tokenizer: train}}",
    "data.path": f"path: {DEFAULT_TEXT}",
    "evaluation": "evaluation: {every: 100}",
    "checkpoints": "checkpoints: {every: 250, keep: 2}",
    "parallel": "parallel: {plan: auto, wire: bf16}",
    "machines": "machines: {spot: true, accelerator: {type: nvidia-tesla-t4, count: 1}}",
    "machines.accelerator": "accelerator: {type: nvidia-tesla-t4, count: 1}",
    "machines.zones": "zones: [us-central1-a, us-central1-b]",
    "limits": "limits: {maxHours: 24, maxCostUsd: 200}",
    "network": "network: {nat: true}",
    "pipeline": "pipeline: {repository: acme/models, repositoryId: 123456789}",
    "pipeline.repositoryId": "the number that `gh api repos/OWNER/NAME --jq .id` prints",
    "sweep.params": f"params: [{search_space.EXAMPLE}]",
}


def bucket_of(stack: str, root: Path = ROOT) -> str:
    """Return the address of a stack's bucket, whatever else its file says. Raise ConfigError."""
    values, provider = stack_values(stack, root)
    if values.get("platform", "local") != "google":
        return bucket_url(stack, root)
    if problems := project_problems(provider, stack):
        raise ConfigError(problems)
    return google_bucket(plain_text(provider.get("project")), stack)


def load(
    values: Mapping[str, Any], stack: str, root: Path = ROOT, provider: Mapping[str, Any] | None = None
) -> StackConfig:
    """Check a stack file's values, keyed without the project's name. Raise ConfigError with all problems."""
    try:
        file = StackFile.model_validate(dict(values), strict=True, by_alias=True, by_name=False)
    except ValidationError as error:
        raise ConfigError(explain(error, StackFile, PROJECT, EXAMPLES)) from None
    config = StackConfig(stack, root, file, provider or {})
    problems = [f"{PROJECT}:{problem}" for problem in combination_problems(file)]
    if config.google:
        problems += stack_problems(config)
        if not problems:  # unknown machines have no known memory
            fleet = resolve_fleet(config)
            found = sharing_problems(config, fleet) or memory_problems(config, fleet)
            problems += [f"{PROJECT}:{problem}" for problem in found]
    if problems:
        raise ConfigError(problems)
    return config


def from_file(stack: str, root: Path = ROOT) -> StackConfig:
    """Load Pulumi.<stack>.yaml. Raise ConfigError."""
    values, provider = stack_values(stack, root)
    return load(values, stack, root, provider)

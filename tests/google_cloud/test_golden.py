"""The output of `pulumi preview` for the committed stacks, as YAML under tests/golden: a change to infra is a diff.

After an intended change: UPDATE_GOLDEN=1 python -m pytest tests/google_cloud/test_golden.py
"""

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from .conftest import StandIn

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
UNKNOWN = "04da6b54-80e4-46f7-96ec-b56ff0331ba9"
# These values differ from test to test, or with every line of the trainer's code.
MASKS = [
    (re.compile(r"\bgpt2-\d+x\d+-[0-9a-f]{8}\b|\bgpt2-[0-9a-f]{8}\b(?=[/.\"]|$)"), "RUN"),
    (re.compile(r"-(master|worker|ps|controller)-[0-9a-f]{8}\b"), r"-\1-HASH"),
    (re.compile(r"(-(?:template|role|provider))-[0-9a-f]{7}\b"), r"\1-RANDOM"),
    (re.compile(r"(trainer:)[0-9a-f]{16}\b"), r"\1CODE"),
    (re.compile(r"^[0-9a-f]{16}$"), "HASH"),
]


def masked(value: Any, stand_in: StandIn) -> Any:
    if isinstance(value, dict) and "hash" in value and {"text", "path"} & set(value):  # this is an asset
        if not value.get("text"):
            return masked(value["path"], stand_in)
        return masked(json.loads(value["text"]), stand_in)
    if isinstance(value, dict):
        hidden = ("__defaults", "__provider", "version", "pluginDownloadURL", "4dabf18193072939515e22adb298388d")
        kept = {key: masked(item, stand_in) for key, item in sorted(value.items()) if key not in hidden}
        return kept | ({"threads": "CORES"} if "threads" in kept else {})
    if isinstance(value, list):
        return [masked(item, stand_in) for item in value]
    if not isinstance(value, str):
        return value  # type: ignore[no-any-return]
    if value.startswith("#!/bin/bash"):
        return "(infra/google/boot.sh)"
    text = value.replace(str(stand_in.root), "ROOT").replace(stand_in.project, "PROJECT").replace(UNKNOWN, "(unknown)")
    for pattern, replacement in MASKS:
        text = pattern.sub(replacement, text)
    return text


def readable(steps: list[dict[str, Any]], stand_in: StandIn) -> dict[str, Any]:
    """Return {type name: inputs}, sorted by type and name, as Pulumi does not order the steps."""
    found = {}
    for step in steps:
        _, kind, name = step["urn"].rsplit("::", 2)
        state = step["newState"]
        found[f"{kind.rsplit('$', 1)[-1]} {name}"] = masked(state.get("inputs", {}), stand_in)
    return dict(sorted(found.items()))


@pytest.mark.slow
@pytest.mark.parametrize("stack", ["dev", "single", "local"])
def test_preview_of_a_committed_stack_equals_the_golden_file(cloud: StandIn, stack: str) -> None:
    cloud.environment["PULUMI_CONFIG_PASSPHRASE"] = ""  # Pulumi.local.yaml was made with this passphrase
    (cloud.root / "data" / "gpt2-vocabulary").mkdir(exist_ok=True)
    for name in ("vocab.json", "merges.txt"):
        (cloud.root / "data" / "gpt2-vocabulary" / name).touch()
    compare(cloud.preview(stack=stack), cloud, stack)


@pytest.mark.slow
def test_preview_of_the_owners_program_equals_the_golden_file(cloud: StandIn) -> None:
    key = "gpt2-training:pipeline: {repository: acme/models, repositoryId: 123456789}\n  gpt2-training:platform"
    cloud.edit("single", "gpt2-training:platform", key)
    in_folder = ("--cwd", str(cloud.root / "bootstrap"))
    cloud.pulumi(*in_folder, "stack", "init", stack="single")
    steps = json.loads(cloud.pulumi(*in_folder, "preview", "--json", stack="single"))["steps"]
    compare(steps, cloud, "bootstrap")


def compare(steps: list[dict[str, Any]], cloud: StandIn, name: str) -> None:
    found = yaml.safe_dump(readable(steps, cloud), sort_keys=False, width=110)
    assert cloud.project not in found
    path = GOLDEN / f"{name}.yaml"
    if os.environ.get("UPDATE_GOLDEN"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(found)
    assert found == path.read_text(), f"see the diff with UPDATE_GOLDEN=1 and `git diff {path.name}`"

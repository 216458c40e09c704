"""infra/review/replacing.yaml agrees with the provider's schema and with our own providers.

After a resource type was added to tests/google_cloud/resources.json, write it anew:
UPDATE_REPLACING=1 python -m pytest tests/infra/review/test_offline.py
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from infra.google.guard import KEEPS_RUNNING, LaunchProvider
from infra.local.machines import MachineProvider
from infra.local.storage import BucketProvider, JobProvider, TextProvider
from infra.review import steps
from tests.google_cloud import names
from tests.google_cloud.diff import REPLACES

TABLE = Path(steps.__file__).with_name("replacing.yaml")
HEAD = """\
# Inputs whose change makes a resource anew, where nobody asks a provider: offline reviews. Facts of the schema of
# pulumi-gcp v9.35 and of our own dynamic resources; tests/infra/review/test_offline.py checks them and writes this.
"""
# These are not in the schema: an image is built again in place, and our own providers are tested below.
OURS: dict[str, list[str]] = {
    "docker-build:index:Image": [],
    "pulumi-python:dynamic/google:Launch": ["bucket", "launch", "run"],
    "pulumi-python:dynamic/local:Bucket": ["url"],
    "pulumi-python:dynamic/local:Job": ["bucket", "path"],
    "pulumi-python:dynamic/local:Machine": ["bucket", "launch", "name", "role", "run"],
    "pulumi-python:dynamic/local:Text": ["bucket", "fingerprint", "path"],
}


def replacing(shape: dict[str, Any], path: str, seen: frozenset[str] = frozenset()) -> Iterator[str]:
    """Yield the paths at and below an input whose change replaces the resource."""
    if shape.get("replaces"):
        yield path
    elif "array" in shape:
        yield from replacing(shape["array"], f"{path}[]", seen)
    elif (ref := shape.get("ref")) and ref not in seen:
        for key, inner in names.table()["types"].get(ref, {}).get("properties", {}).items():
            yield from replacing(inner, f"{path}.{key}", seen | {ref})


def derived() -> dict[str, list[str]]:
    found = dict(OURS)
    for token, resource in names.table()["resources"].items():
        paths = {path for key, shape in resource["inputs"].items() for path in replacing(shape, key)}
        paths |= {key for key in REPLACES.get(token, ()) if key in resource["inputs"]}
        found[token] = ["*"] if paths == set(resource["inputs"]) else sorted(paths)
    return found


def test_replacing_table_agrees_with_the_schema() -> None:
    if os.environ.get("UPDATE_REPLACING"):
        TABLE.write_text(HEAD + yaml.safe_dump(derived(), width=116, default_flow_style=None))
    assert yaml.safe_load(TABLE.read_text()) == derived()


def test_replacing_table_agrees_with_our_own_providers() -> None:
    providers = {
        "pulumi-python:dynamic/google:Launch": (LaunchProvider(), {"started", *KEEPS_RUNNING}),
        "pulumi-python:dynamic/local:Bucket": (BucketProvider(), set()),
        "pulumi-python:dynamic/local:Job": (JobProvider(), {"spec"}),
        "pulumi-python:dynamic/local:Machine": (MachineProvider(), {"start"}),
        "pulumi-python:dynamic/local:Text": (TextProvider(), {"source"}),
    }
    for token, (provider, others) in providers.items():
        olds = dict.fromkeys({*OURS[token], *others, "path"}, "one") | {"bucket": "file:///nowhere"}
        for key in {*OURS[token], *others}:
            replaced = provider.diff("id", olds, {**olds, key: "file:///another" if key == "bucket" else "another"})
            assert (replaced.replaces == [key]) == (key in OURS[token]), (token, key)

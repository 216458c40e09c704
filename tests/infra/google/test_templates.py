"""The templates of every family of machines are such that Google takes them, as far as the stand-in's rules tell."""

import re
from pathlib import Path
from typing import Any

import pytest

from infra.fleet.catalog import MACHINE_TYPES
from infra.fleet.fleet import resolve_fleet
from infra.google.groups import template_arguments
from infra.job import job_spec
from tests.google_cloud import rules
from tests.infra.checks.test_google import changed
from tests.infra.google_graph import make_root, read

TEMPLATE = "gcp:compute/regionInstanceTemplate:RegionInstanceTemplate"


def camel(value: Any) -> Any:
    """Return arguments of the SDK with the names that travel to the provider."""
    if isinstance(value, dict):
        return {re.sub("_([a-z])", lambda m: m[1].upper(), key): camel(inner) for key, inner in value.items()}
    return [camel(inner) for inner in value] if isinstance(value, list) else value


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_root(tmp_path_factory.mktemp("checkout"))


@pytest.mark.parametrize("family", sorted({machine.family for machine in MACHINE_TYPES.values()}))
@pytest.mark.parametrize("compact", [False, True])
def test_templates_of_a_family_are_taken(root: Path, family: str, compact: bool) -> None:
    # One of each series, as all sizes of a series have the same disk, network and ways.
    series = {m.name.rpartition("-")[0] + m.links + "".join(m.ways): m for m in MACHINE_TYPES.values()}
    for machine in series.values():
        flex = "on demand" not in machine.ways
        if machine.family != family or (compact and (flex or not machine.compact or machine.links == "RDMA")):
            continue
        training: dict[str, Any] = {
            "masterType": machine.name,
            "hyperparameters": {"batchSize": 32, "sequenceLength": 64},
        }
        if compact:
            training |= {"workerType": machine.name, "workerCount": 1}
        settings = {"flexStart": flex, "compactPlacement": compact}
        stack = read(
            changed({"trainingInput": training, "machines": settings, "limits": {}, "model": {"size": "tiny"}}), root
        )
        fleet = resolve_fleet(stack)
        template = camel(template_arguments(stack, job_spec(stack, fleet), fleet.master, hours=24))
        template["networkInterfaces"] = [{"nicType": "GVNIC"}]
        if not flex:
            template["scheduling"]["terminationTime"] = "2030-01-01T00:00:00Z"
        rules.check(TEMPLATE, template)
        assert ("resourcePolicies" in template) == compact
        assert template["disks"][0]["diskType"] == machine.disk
        assert ("provisionedIops" in template["disks"][0]) == (machine.disk == "hyperdisk-balanced")

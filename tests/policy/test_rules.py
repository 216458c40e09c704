"""Each rule on the resources that the program declares for Pulumi.dev.yaml: no finding, and one after each change."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from infra.review.values import UNKNOWN
from policy import rules
from policy.rules import Finding, Resource, check
from tests.infra.google_graph import declare, make_root, read, stack_values

Props = dict[str, Any]
RUN = "training"
WORKER, GROUP, BUCKET, SSH = "worker-template", "worker-us-central1-a-group", "artifacts", "ssh"
GRANT = "master-logWriter-grant"
IMAGE = "us-docker.pkg.dev/p/r/trainer@sha256:" + "1" * 64


@pytest.fixture(scope="module")
def declared(tmp_path_factory: pytest.TempPathFactory) -> list[Resource]:
    return resources(tmp_path_factory.mktemp("root"))


def resources(folder: Path, **changes: Any) -> list[Resource]:
    values = stack_values() | {f"gpt2-training:{key}": value for key, value in changes.items()}
    graph, _ = declare(read(values, make_root(folder)))
    return [Resource(urn, one.token, one.name, one.inputs) for urn, one in graph.resources.items()]


def changed(declared: list[Resource], name: str, change: Callable[[Props], Any]) -> list[Resource]:
    """Return the resources with a change of the one called `name`, which must exist."""
    found = copy.deepcopy(declared)
    (one,) = [one for one in found if one.name == name and not one.type.endswith(("dynamic/google:Launch", "Machines"))]
    change(one.properties)
    return found


def added(declared: list[Resource], kind: str, **properties: Any) -> list[Resource]:
    return [*declared, Resource("urn:new", kind, "new", properties)]


def said(findings: list[Finding]) -> list[tuple[str, str]]:
    return [(one.rule, one.level) for one in findings]


def test_committed_stack_breaks_no_rule(declared: list[Resource]) -> None:
    assert check(declared) == []
    kinds = {one.type for one in declared}
    assert {rules.RUN, rules.BUCKET, rules.GROUP, rules.TEMPLATES[0], "pulumi:providers:gcp"} <= kinds


def test_value_that_is_unknown_in_a_preview_is_no_finding(declared: list[Resource]) -> None:
    """In a preview a value, or all of a template, is unknown."""
    whole = changed(declared, WORKER, lambda p: p.update(dict.fromkeys(p, UNKNOWN)))
    assert check(whole) == []
    part = changed(declared, WORKER, lambda p: p["metadata"].update({"gpt2-image": UNKNOWN}))
    assert check(changed(part, BUCKET, lambda p: p.update(uniformBucketLevelAccess=UNKNOWN))) == []


def scheduling(**values: Any) -> Callable[[Props], None]:
    return lambda p: p["scheduling"].update(values)


NIC, ACCESS, KIND = "networkInterfaces", "accessConfigs", "gcp:storage/bucketIAMBinding:BucketIAMBinding"
CASES: list[tuple[str, str, Callable[[Props], Any], str]] = [
    ("no-public-address", WORKER, lambda p: p[NIC][0].update({ACCESS: [{"networkTier": "PREMIUM"}]}), ACCESS),
    ("no-public-address", WORKER, lambda p: p[NIC][0].update(ipv6AccessConfigs=[{}]), "ipv6AccessConfigs"),
    ("no-open-firewall", SSH, lambda p: p.update(sourceRanges=["10.0.0.0/8", "0.0.0.0/0"]), "lets 0.0.0.0/0 in"),
    ("no-open-firewall", SSH, lambda p: p.update(sourceRanges=["::/0"]), "lets ::/0 in"),
    ("no-open-firewall", SSH, lambda p: p.update(sourceRanges=["0.0.0.0/1", "128.0.0.0/1"]), "lets 0.0.0.0/1, 128.0"),
    ("no-open-firewall", SSH, lambda p: p.update(sourceRanges=["8.0.0.0/7", "10.0.0.0/8"]), "lets 8.0.0.0/7 in"),
    ("no-open-firewall", SSH, lambda p: p.update(sourceRanges=[f"{i}.0.0.0/8" for i in (3, 17)]), "3.0.0.0/8, 17.0"),
    ("no-open-firewall", SSH, lambda p: p.update(sourceRanges=["2000::/3"]), "lets 2000::/3 in"),
    ("no-open-firewall", SSH, lambda p: p.pop("sourceRanges"), "names no source"),
    ("no-public-access", "master-artifacts-write-grant", lambda p: p.update(member="allUsers"), "allUsers"),
    ("no-primitive-role", GRANT, lambda p: p.update(role="roles/editor"), "grants roles/editor"),
    ("no-project-storage-role", GRANT, lambda p: p.update(role="roles/storage.objectViewer"), "every bucket"),
    ("no-whole-bucket-writer", "worker-artifacts-write-grant", lambda p: p.pop("condition"), "another's"),
    (
        "no-whole-bucket-writer",
        "worker-artifacts-write-grant",
        lambda p: p["condition"].update(expression="true"),
        "add a condition on names",
    ),
    (
        "no-whole-bucket-writer",
        "worker-artifacts-read-grant",
        lambda p: (p.update(role="roles/storage.objectAdmin"), p.pop("condition")),
        "roles/storage.objectAdmin",
    ),
    ("labels", WORKER, lambda p: p["labels"].pop("run"), "no label run:"),
    ("labels", WORKER, lambda p: p.pop("labels"), "no label role, run, launch:"),
    ("labels", "google", lambda p: p.pop("defaultLabels"), "gpt2-stack"),
    ("termination-time", WORKER, lambda p: p["scheduling"].pop("terminationTime"), "runs until somebody ends it"),
    ("spot-termination-action", WORKER, scheduling(instanceTerminationAction=None), "instanceTerminationAction"),
    ("gpu-maintenance", WORKER, scheduling(onHostMaintenance="MIGRATE"), "onHostMaintenance: TERMINATE"),
    ("private-bucket", BUCKET, lambda p: p.update(publicAccessPrevention="inherited"), "publicAccessPrevention"),
    ("private-bucket", BUCKET, lambda p: p.pop("uniformBucketLevelAccess"), "uniformBucketLevelAccess"),
    ("no-force-destroy", BUCKET, lambda p: p.update(forceDestroy=True), "keepArtifacts: false"),
    ("image-digest", WORKER, lambda p: p["metadata"].update({"gpt2-image": "trainer:latest"}), "trainer:latest"),
    ("image-digest", WORKER, lambda p: p["metadata"].pop("gpt2-image"), "names no image"),
    ("cost-limit", RUN, lambda p: p["limits"].update(maxCostUsd=100), "more than limits.maxCostUsd, 100; use maxHours"),
    ("cost-limit", RUN, lambda p: p["limits"].update(maxHours=48), "48: more than limits.maxCostUsd, 200"),
    ("cost-limit", GROUP, lambda p: p.update(targetSize=40), "limits.maxCostUsd"),
    ("cost-limit", WORKER, lambda p: p.update(machineType="n9-mega-1"), "nobody priced n9-mega-1 Spot in us-central1"),
]


@pytest.mark.parametrize(("rule", "name", "change", "words"), CASES)
def test_rule_finds_one_change(
    declared: list[Resource], rule: str, name: str, change: Callable[[Props], Any], words: str
) -> None:
    (finding,) = check(changed(declared, name, change))
    assert (finding.rule, finding.level) == (rule, "advisory" if rule == "cost-limit" else "mandatory")
    assert words in finding.message
    assert finding.urn == next(one.urn for one in declared if one.name == (RUN if rule == "cost-limit" else name))
    assert "\n" not in finding.message


@pytest.mark.parametrize(
    ("rule", "kind", "properties"),
    [
        ("no-public-address", "gcp:compute/address:Address", {"name": "a"}),
        ("no-public-access", "gcp:storage/bucketACL:BucketACL", {"roleEntities": ["READER:allUsers"]}),
        ("no-public-access", "gcp:storage/bucketACL:BucketACL", {"predefinedAcl": "publicRead"}),
        ("no-public-access", "gcp:storage/bucketACL:BucketACL", {"defaultAcl": "authenticatedRead"}),
        ("no-public-access", KIND, {"role": "roles/storage.objectViewer", "members": ["allAuthenticatedUsers"]}),
        (
            "no-primitive-role",
            "gcp:projects/iAMPolicy:IAMPolicy",
            {"policyData": json.dumps({"bindings": [{"role": "roles/owner", "members": ["user:me@example.com"]}]})},
        ),
    ],
)
def test_rule_finds_another_resource(declared: list[Resource], rule: str, kind: str, properties: Props) -> None:
    assert said(check(added(declared, kind, **properties))) == [(rule, "mandatory")]


def test_lone_machine_is_held_to_the_rules_of_all_machines(declared: list[Resource]) -> None:
    found = check(added(declared, rules.INSTANCE, machineType="a2-highgpu-8g", zone="us-central1-a"))
    assert {one.rule for one in found} == {
        *("labels", "termination-time", "gpu-maintenance", "image-digest", "cost-limit")
    }


@pytest.mark.parametrize(
    ("name", "change"),
    [
        (WORKER, lambda p: p[NIC][0].update({ACCESS: []})),  # Google answers with this form
        (WORKER, scheduling(terminationTime=None, maxRunDuration={"seconds": 3600})),
        (WORKER, scheduling(instanceTerminationAction="STOP")),
        (SSH, lambda p: p.update(sourceRanges=["0.0.0.0/0"], direction="EGRESS")),
        (SSH, lambda p: p.update(sourceRanges=["0.0.0.0/0"], disabled=True)),
        (SSH, lambda p: p.update(sourceRanges=["10.0.0.0/8", "fc00::/7", "9.0.0.0/8", "2a00::/16", UNKNOWN])),
        (SSH, lambda p: p.update(sourceRanges=UNKNOWN)),
        (RUN, lambda p: p["limits"].pop("maxCostUsd")),
        (
            GRANT,
            lambda p: p.update(
                role="roles/storage.admin", condition={"expression": "resource.name.startsWith('projects/_/buckets/b')"}
            ),
        ),
    ],
)
def test_change_that_is_allowed_gives_no_finding(
    declared: list[Resource], name: str, change: Callable[[Props], Any]
) -> None:
    assert check(changed(declared, name, change)) == []


def test_stack_that_keeps_nothing_may_destroy_its_buckets(tmp_path: Path) -> None:
    kept_nothing = resources(tmp_path, keepArtifacts=False, image=IMAGE)
    assert [one.properties["forceDestroy"] for one in kept_nothing if one.type == rules.BUCKET] == [True, True]
    assert check(kept_nothing) == []


@pytest.mark.parametrize(
    ("optimizer", "rate", "advice"),
    [
        ("adamw", 0.0006, None),
        ("adamw", 0.02, "0.0006 is usual"),
        ("sgd", 0.02, None),
        ("sgd", 0.0001, "hardly learns"),
        (None, 0.5, "with adamw"),
    ],
)
def test_learning_rate_that_is_unusual_gets_advice(
    declared: list[Resource], optimizer: str | None, rate: float, advice: str | None
) -> None:
    given = {"learningRate": rate} | ({"optimizer": optimizer} if optimizer else {})
    found = check(changed(declared, RUN, lambda p: p["trainingInput"].update(hyperparameters=given)))
    assert said(found) == ([("learning-rate", "advisory")] if advice else [])
    assert not advice or advice in found[0].message

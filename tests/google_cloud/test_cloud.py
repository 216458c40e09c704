"""The stand-in cloud's legal inputs, changes and permissions, without a CLI."""

from pathlib import Path
from typing import Any

import pytest

from tests.google_cloud import diff, iam, images, names, rules, schema
from tests.google_cloud.cloud import Cloud
from tests.google_cloud.errors import CloudError

Json = dict[str, Any]
BUCKET, OBJECT = "gcp:storage/bucket:Bucket", "gcp:storage/bucketObject:BucketObject"
ACCOUNT, FIREWALL = "gcp:serviceaccount/account:Account", "gcp:compute/firewall:Firewall"
TEMPLATE = "gcp:compute/regionInstanceTemplate:RegionInstanceTemplate"
GROUP = "gcp:compute/regionInstanceGroupManager:RegionInstanceGroupManager"
IMAGE, REPOSITORY = names.IMAGE, "gcp:artifactregistry/repository:Repository"
PROJECT_MEMBER = "gcp:projects/iAMMember:IAMMember"
REPOSITORY_MEMBER = "gcp:artifactregistry/repositoryIamMember:RepositoryIamMember"
NETWORK, SUBNETWORK = "gcp:compute/network:Network", "gcp:compute/subnetwork:Subnetwork"


@pytest.mark.parametrize(
    ("token", "inputs", "path", "why"),
    [
        (BUCKET, {"location": "EU", "versionning": {}}, "versionning", "unknown property"),
        (BUCKET, {"location": "EU", "versioning": {"enabled": True, "on": True}}, "versioning.on", "unknown property"),
        (BUCKET, {"location": "EU", "versioning": {}}, "versioning.enabled", "missing required property"),
        (BUCKET, {"location": "EU", "versioning": True}, "versioning", "must be an object"),
        (BUCKET, {}, "location", "missing required property"),
        (BUCKET, {"location": "EU", "forceDestroy": "yes"}, "forceDestroy", "must be boolean"),
        (BUCKET, {"location": "EU", "labels": {"Team": "ml"}}, "labels.Team", "no label key"),
        (BUCKET, {"location": "EU", "labels": {"team": "M L"}}, "labels.team", "no label value"),
        (BUCKET, {"location": "EU", "name": "a" * 64}, "name", "does not match"),
        (BUCKET, {"location": "EU", "name": "goog-le"}, "name", "does not match"),
        (ACCOUNT, {"accountId": "abc"}, "accountId", "does not match"),
        (ACCOUNT, {"accountId": "a" * 31}, "accountId", "does not match"),
        (NETWORK, {"name": "Net"}, "name", "does not match"),
        (NETWORK, {"mtu": 1460.5}, "mtu", "must be integer"),
        (OBJECT, {"bucket": "b", "source": "text"}, "source", "must be an asset"),
        (FIREWALL, {"network": "n", "sourceRanges": "10.0.0.0/8"}, "sourceRanges", "must be a list"),
        (
            FIREWALL,
            {"network": "n", "allows": [{"protocol": "tcp", "ports": [22]}]},
            "allows[0].ports[0]",
            "must be str",
        ),
        (TEMPLATE, {"machineType": "n1", "disks": [{"boots": True}]}, "disks[0].boots", "unknown property"),
        (TEMPLATE, {"machineType": "n1", "disks": [], "metadata": {"a": 1}}, "metadata.a", "must be string"),
        (
            TEMPLATE,
            {"machineType": "n1", "disks": [], "scheduling": {"provisioningModel": "spot"}},
            "scheduling.provisioningModel",
            "none of STANDARD, SPOT",
        ),
        (IMAGE, {"push": True, "platforms": ["linux/amd65"]}, "platforms[0]", "none of"),
        (IMAGE, {"tags": []}, "push", "missing required property"),
        ("gcp:compute/disk:Disk", {}, "", "does not know"),
    ],
)
def test_wrong_input_is_named_with_its_mistake(token: str, inputs: Json, path: str, why: str) -> None:
    found = dict(schema.problems(token, inputs))
    assert list(found) == [path]
    assert why in found[path]


def test_unknown_values_secrets_and_assets_are_legal_anywhere() -> None:
    secret = {schema.SIGNATURE: schema.SECRET, "value": "a-secret-name"}
    asset = {schema.SIGNATURE: schema.ASSETS[0], "hash": "0", "text": "x"}
    unknown = names.UNKNOWN
    assert not schema.problems(BUCKET, {"location": unknown, "name": secret, "versioning": {"enabled": unknown}})
    assert not schema.problems(OBJECT, {"bucket": unknown, "source": asset, "metadata": unknown})
    assert not schema.problems(FIREWALL, {"network": "n", "allows": [unknown], "sourceRanges": [unknown]})


SPOT = {"provisioningModel": "SPOT", "preemptible": True, "automaticRestart": False}
DEEP_LEARNING = [
    {
        "boot": True,
        "sourceImage": "projects/deeplearning-platform-release/global/images/family/f",
        "diskType": "pd-balanced",
    }
]
LIMITED = {"automaticRestart": False, "instanceTerminationAction": "DELETE", "maxRunDuration": {"seconds": 3600}}
GPU = {"guestAccelerators": [{"type": "nvidia-tesla-t4", "count": 1}]}


@pytest.mark.parametrize(
    ("scheduling", "more", "why"),
    [
        ({**SPOT, "instanceTerminationAction": "DELETE", "preemptionNoticeDuration": {"seconds": 120}}, {}, ""),
        (LIMITED, {}, ""),
        ({"onHostMaintenance": "TERMINATE"}, GPU, ""),
        ({**LIMITED, "provisioningModel": "FLEX_START", "onHostMaintenance": "TERMINATE"}, {"machineType": "g2-x"}, ""),
        ({**SPOT, "preemptible": False}, {}, "must be preemptible"),
        ({**SPOT, "automaticRestart": True}, {}, "automaticRestart false"),
        ({**SPOT, "preemptionNoticeDuration": {"seconds": 60}}, {}, "0 or 120"),
        ({"preemptionNoticeDuration": {"seconds": 120}}, {}, "SPOT only"),
        ({"preemptible": True}, {}, "must not be preemptible"),
        ({"instanceTerminationAction": "DELETE"}, {}, "instanceTerminationAction needs"),
        ({**LIMITED, "terminationTime": "2030-01-01T00:00:00Z"}, {}, "only one of"),
        ({**LIMITED, "maxRunDuration": {"seconds": 121 * 86400}}, {}, "120 days"),
        ({"onHostMaintenance": "MIGRATE"}, GPU, "TERMINATE"),
        ({"onHostMaintenance": "TERMINATE"}, {**GPU, "machineType": "e2-medium"}, "only N1"),
        ({"provisioningModel": "FLEX_START"}, {"machineType": "a2-highgpu-1g"}, "FLEX_START needs"),
        ({**LIMITED, "provisioningModel": "FLEX_START"}, {}, "not for N1"),
        ({}, {"disks": []}, "boot disk"),
        ({"onHostMaintenance": "TERMINATE"}, {"machineType": "g2-standard-4", "disks": DEEP_LEARNING}, "Deep Learning"),
    ],
)
def test_template_is_held_to_the_rules_of_scheduling(scheduling: Json, more: Json, why: str) -> None:
    boot = [{"boot": True, "sourceImage": "projects/p/global/images/family/f", "diskType": "pd-balanced"}]
    template = {"machineType": "n1-standard-4", "disks": boot, "scheduling": scheduling, **more}
    if why:
        with pytest.raises(CloudError, match=why) as refused:
            rules.check(TEMPLATE, template)
        assert refused.value.status == 400
    else:
        rules.check(TEMPLATE, template)


@pytest.mark.parametrize(
    ("token", "state", "why"),
    [
        (GROUP, {"distributionPolicyZones": ["a"], "updatePolicy": {"maxUnavailableFixed": 1}}, ""),
        (GROUP, {"updatePolicy": {"maxUnavailableFixed": 1}}, "number of zones"),
        (GROUP, {"updatePolicy": {"maxUnavailableFixed": 0, "maxSurgeFixed": 0}}, "cannot both be 0"),
        (GROUP, {"distributionPolicyTargetShape": "ANY", "updatePolicy": {"type": "PROACTIVE"}}, "Redistribution"),
        (FIREWALL, {"allows": [{"protocol": "tcp"}]}, "INGRESS firewall needs"),
        (FIREWALL, {"sourceRanges": ["10.0.0.0/8"]}, "either allowed or denied"),
        (SUBNETWORK, {"ipCidrRange": "10.0.0.0/30"}, "/8 and /29"),
        (BUCKET, {"softDeletePolicy": {"retentionDurationSeconds": 3600}}, "between 7 and 90 days"),
        ("gcp:cloudscheduler/job:Job", {"schedule": "0 0 1 1", "httpTarget": {"uri": "https://x"}}, "5 fields"),
        ("gcp:cloudscheduler/job:Job", {"schedule": "0 0 1 1 *"}, "exactly one target"),
    ],
)
def test_state_that_google_refuses_is_400(token: str, state: Json, why: str) -> None:
    if why:
        with pytest.raises(CloudError, match=why):
            rules.check(token, state)
    else:
        rules.check(token, state)


@pytest.fixture
def empty(tmp_path: Path) -> Cloud:
    """Return a cloud in this process, without storage."""
    made = Cloud(tmp_path, "http://127.0.0.1:1", "http://127.0.0.1:1")
    iam.register(made)
    images.register(made)
    made.apis |= {f"p/{api}.googleapis.com" for api in ("iam", "cloudresourcemanager", "artifactregistry", "compute")}
    return made


def add(cloud: Cloud, token: str, **inputs: Any) -> str:
    return cloud.create(token, names.fill(token, inputs, "p", "us-central1", {}), inputs, "p").id


def test_grant_counts_for_its_resource_alone(empty: Cloud) -> None:
    def may(permission: str, resource: str) -> bool:
        return empty.allowed("serviceAccount:master@p.iam.gserviceaccount.com", permission, resource)

    member = {"member": "serviceAccount:master@p.iam.gserviceaccount.com"}
    with pytest.raises(CloudError, match=r"Service account master@p\S+ does not exist"):
        add(empty, PROJECT_MEMBER, role="roles/logging.logWriter", **member)
    account = add(empty, ACCOUNT, accountId="master")
    repository = add(empty, REPOSITORY, repositoryId="r", format="DOCKER")
    add(empty, REPOSITORY, repositoryId="other", format="DOCKER")
    add(empty, PROJECT_MEMBER, role="roles/logging.logWriter", **member)
    add(empty, REPOSITORY_MEMBER, repository="r", role="roles/artifactregistry.reader", **member)
    assert may("logging.logEntries.create", "projects/p")
    assert not may("monitoring.timeSeries.create", "projects/p")
    assert may("artifactregistry.repositories.downloadArtifacts", repository)
    assert not may("artifactregistry.repositories.downloadArtifacts", repository.replace("/r", "/other"))
    assert not may("artifactregistry.repositories.downloadArtifacts", "projects/p")

    with pytest.raises(CloudError, match="Role projects/p/roles/own does not exist"):
        add(empty, PROJECT_MEMBER, role="projects/p/roles/own", **member)
    add(
        empty,
        "gcp:projects/iAMCustomRole:IAMCustomRole",
        roleId="own",
        title="x",
        permissions=["cloudscheduler.jobs.run"],
    )
    grant = add(empty, PROJECT_MEMBER, role="projects/p/roles/own", **member)
    job = "projects/p/locations/us-central1/jobs/j"
    assert may("cloudscheduler.jobs.run", job)
    assert not may("cloudscheduler.jobs.delete", job)
    empty.delete(PROJECT_MEMBER, grant, "p")
    assert not may("cloudscheduler.jobs.run", job)
    empty.change(ACCOUNT, account, disabled=True)
    assert not may("logging.logEntries.create", "projects/p")


def test_template_in_use_and_a_second_resource_of_one_name_are_refused(empty: Cloud) -> None:
    boot = [{"boot": True, "sourceImage": "i"}]
    template = add(empty, TEMPLATE, name="t", machineType="n1-standard-1", disks=boot)
    link = f"https://www.googleapis.com/compute/v1/{template}"
    group = add(empty, GROUP, name="g", baseInstanceName="g", versions=[{"instanceTemplate": link}], targetSize=0)
    with pytest.raises(CloudError, match="already exists") as refused:
        add(empty, TEMPLATE, name="t", machineType="n1-standard-1", disks=boot)
    assert refused.value.status == 409
    with pytest.raises(CloudError, match="already being used by") as refused:
        empty.delete(TEMPLATE, template, "p")
    assert refused.value.status == 400
    empty.delete(GROUP, group, "p")
    empty.delete(TEMPLATE, template, "p")
    assert empty.resources == {}
    with pytest.raises(CloudError, match="was not found") as refused:
        add(empty, GROUP, name="g", baseInstanceName="g", versions=[{"instanceTemplate": link}])
    assert refused.value.status == 404


@pytest.mark.parametrize(
    ("rules", "left"),
    [
        ([], "Dockerfile a.py a.txt keep.txt out/e.py sub/b.py sub/d.txt sub/deep/c.py"),
        (["*", "!*.py"], "a.py"),
        (["*", "!**/*.py", "!keep.txt", "out"], "a.py keep.txt sub/b.py sub/deep/c.py"),
        (["*.txt", "!keep.t?t"], "Dockerfile a.py keep.txt out/e.py sub/b.py sub/d.txt sub/deep/c.py"),
        (["sub/**", "out/"], "Dockerfile a.py a.txt keep.txt"),
        (["**/*.*", "!**/*.py", "**/deep"], "Dockerfile a.py out/e.py sub/b.py"),
    ],
)
def test_dockerignore_selects_the_files_that_docker_does(tmp_path: Path, rules: list[str], left: str) -> None:
    for name in ["Dockerfile", "a.py", "a.txt", "keep.txt", "sub/b.py", "sub/deep/c.py", "sub/d.txt", "out/e.py"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    assert images.context_files(tmp_path, rules) == left.split()


def test_context_hash_changes_with_the_files_of_a_build_alone(tmp_path: Path) -> None:
    for name, content in {"Dockerfile": "FROM a", "m.py": "1", "x.log": "1", "tests/t.py": "1"}.items():
        (tmp_path / "c" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "c" / name).write_text(content)
    (tmp_path / "c" / ".dockerignore").write_text("*.log\ntests\n")

    def now() -> str:
        return images.context_hash({"context": {"location": "c"}}, tmp_path)

    first = now()
    (tmp_path / "c" / "x.log").write_text("2")
    (tmp_path / "c" / "tests" / "t.py").write_text("2")
    assert now() == first
    (tmp_path / "c" / "Dockerfile").write_text("FROM b")
    second = now()
    assert second != first
    (tmp_path / "c" / "m.py").write_text("2")
    assert now() not in (first, second)
    with pytest.raises(ValueError, match="Dockerfile"):
        images.context_hash({"context": {"location": "none"}}, tmp_path)


@pytest.mark.parametrize(
    ("token", "old", "new", "found"),
    [
        (BUCKET, {"location": "EU"}, {"location": "US"}, {"location": "UPDATE_REPLACE"}),
        (BUCKET, {"location": "EU"}, {"location": "eu"}, {}),
        (
            BUCKET,
            {"versioning": {"enabled": True}},
            {"versioning": {"enabled": False}},
            {"versioning.enabled": "UPDATE"},
        ),
        (BUCKET, {"labels": {"a": "1"}}, {}, {"labels": "DELETE"}),
        (BUCKET, {}, {"forceDestroy": False, "deletionPolicy": "DELETE"}, {}),
        (BUCKET, {"name": "n"}, {"name": names.UNKNOWN}, {"name": "UPDATE_REPLACE"}),
        (TEMPLATE, {"disks": [{"boot": True}]}, {"disks": [{"boot": False}]}, {"disks[0].boot": "UPDATE_REPLACE"}),
        (TEMPLATE, {"labels": {"a": "1"}}, {"labels": {"a": "2"}}, {"labels.a": "UPDATE_REPLACE"}),
        (GROUP, {"targetSize": 3}, {"targetSize": 4}, {"targetSize": "UPDATE"}),
        (GROUP, {"distributionPolicyZones": ["a", "b"]}, {"distributionPolicyZones": ["b", "a"]}, {}),
        (
            GROUP,
            {"distributionPolicyZones": ["a"]},
            {"distributionPolicyZones": ["b"]},
            {"distributionPolicyZones[0]": "UPDATE_REPLACE"},
        ),
        (FIREWALL, {"allows": [{"protocol": "tcp"}]}, {"allows": []}, {"allows[0]": "DELETE"}),
    ],
)
def test_change_updates_or_replaces_by_the_schema(token: str, old: Json, new: Json, found: Json) -> None:
    assert diff.changes(token, old, new) == found

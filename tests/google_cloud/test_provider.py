"""The stand-in provider through the real CLI: its refusals, its previews, and the resources that it keeps."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.google_cloud.conftest import StandIn

slow = pytest.mark.slow
BUCKET, ACCOUNT = "gcp:storage/bucket:Bucket", "gcp:serviceaccount/account:Account"
FIREWALL = "gcp:compute/firewall:Firewall"
NETWORK, SUBNETWORK = "gcp:compute/network:Network", "gcp:compute/subnetwork:Subnetwork"
HEAD = """
import json, pulumi
from pulumi import Output, ResourceOptions
from pulumi_gcp import artifactregistry, compute, projects, serviceaccount, storage
P = pulumi.Config("gcp").require("project")
def raw(token, name, opts=None, **props):  # by names that the SDK's classes would not take; and without their import
    return pulumi.CustomResource(token, name, props, opts)
"""


@pytest.fixture
def stack(cloud: StandIn) -> StandIn:
    config = f"config:\n  gcp:project: {cloud.project}\n  gcp:region: us-central1\n"
    (cloud.root / "Pulumi.dev.yaml").write_text(config)
    return cloud


@pytest.fixture
def program(stack: StandIn) -> Callable[[str], None]:
    return lambda text: stack.program(HEAD + text)


Program = Callable[[str], None]


@slow
def test_wrong_inputs_are_refused_before_anything_is_made(stack: StandIn, program: Program) -> None:
    program('raw("gcp:storage/bucket:Bucket", "typo", location="EU", versionning={"enabled": True})')
    assert "resource 'typo': property versionning value {" in stack.pulumi("preview", ok=False)
    program('storage.Bucket("word", location="EU", public_access_prevention="enforce")')
    assert "'enforce' is none of inherited, enforced" in stack.up(ok=False)
    assert stack.resources() == {}


@slow
def test_resource_is_made_changed_and_deleted_by_the_program(stack: StandIn, program: Program) -> None:
    bucket = """
b = storage.Bucket("fixed", name=P + "-fixed", location="EU", labels={"team": "ml"}LABELS)
storage.Bucket("free", location="PLACE", versioning={"enabled": VERSIONS})
pulumi.export("url", b.url)
"""

    def declare(place: str = "EU", versions: bool = False, more: str = "") -> None:
        text = bucket.replace("PLACE", place).replace("VERSIONS", str(versions)).replace("LABELS", more)
        program(text.replace('location="EU", labels', f'location="{place}", labels'))

    declare()
    assert stack.steps() == {"gpt2-training-dev": "create", "fixed": "create", "free": "create"}
    assert stack.resources() == {}, "a preview makes nothing"
    stack.up()
    assert stack.outputs() == {"url": f"gs://{stack.project}-fixed"}
    first = set(stack.resources()[BUCKET])
    assert len(first) == 2
    assert all(stack.gcs().lookup_bucket(name) for name in first), "a bucket is a bucket of the storage server"

    declare(versions=True)
    assert stack.steps() == {"free": "update"}

    declare(place="US", versions=True)
    steps = {s["urn"].rsplit("::", 1)[1]: s for s in stack.preview() if s["op"] == "replace"}
    assert {n: s["replaceReasons"] for n, s in steps.items()} == {"fixed": ["location"], "free": ["location"]}
    output = stack.up()  # One's name is free only when the old one is gone: any other order gives 409
    order = [line for line in output.splitlines() if "Bucket free" in line]
    assert "creat" in order[0]
    assert "delet" in order[-1], "what has a name of its own is made before the old one goes"
    second = set(stack.resources()[BUCKET])
    assert len(second) == 2
    assert len(first & second) == 1

    stack.change(BUCKET, f"{stack.project}-fixed", labels={"team": "ops"})
    (lost,) = second - {f"{stack.project}-fixed"}
    stack.remove(BUCKET, lost)
    drift = {n: op for n, op in stack.steps("dev", "--refresh").items() if op != "refresh"}
    assert drift == {"fixed": "update", "free": "create"}
    stack.up("--refresh")
    assert stack.state(BUCKET, f"{stack.project}-fixed")["labels"] == {"team": "ml"}
    stack.destroy()
    assert stack.resources() == {}
    assert stack.gcs().lookup_bucket(f"{stack.project}-fixed") is None


@slow
def test_refusal_of_the_cloud_reaches_the_person(stack: StandIn, program: Program) -> None:
    stack.gcs().create_bucket(f"{stack.project}-taken")
    stack.enable("artifactregistry", "iam")
    stack.fault(BUCKET, "create", message="come again")  # it hits the first bucket, whichever that is
    program(
        """
first = storage.Bucket("fault", location="EU")
storage.Bucket("conflict", name=P + "-taken", location="EU", opts=ResourceOptions(depends_on=[later]))
""".replace("first =", "later = serviceaccount.Account('later', account_id='later-one')\nfirst =")
        + """
raw("gcp:compute/network:Network", "disabled", autoCreateSubnetworks=False)
storage.BucketIAMMember("lost", bucket=P + "-none", role="roles/storage.objectViewer", member=later.member)
storage.BucketObject("object", bucket=P + "-none", source=pulumi.StringAsset("x"))
raw("docker-build:index:Image", "image", push=True, dockerfile={"inline": "FROM scratch"},
    tags=["us-central1-docker.pkg.dev/" + P + "/none/trainer:t"], context={"location": "data"}, buildOnPreview=False)
artifactregistry.RepositoryIamMember("role", repository="r", location="us-central1", role="roles/no.such",
    member="serviceAccount:nobody@" + P + ".iam.gserviceaccount.com")
"""
    )
    output = stack.up("--continue-on-error", ok=False)
    for line in (
        "create of BucketIAMMember 'lost': googleapi: Error 404",
        "create of BucketObject 'object': googleapi: Error 404",
        "create of Network 'disabled': googleapi: Error 403: compute.googleapis.com has not been used",
        "create of RepositoryIamMember 'role': googleapi: Error 404",
        "create of Image 'image': googleapi: Error 404: failed to push",
        "Error 503: come again, backendError",
        "create of Bucket 'conflict': googleapi: Error 409",
    ):
        assert line in output, output
    assert stack.resources() == {
        "gcp:serviceaccount/account:Account": [
            f"projects/{stack.project}/serviceAccounts/later-one@{stack.project}.iam.gserviceaccount.com"
        ]
    }


@slow
def test_resource_in_use_cannot_be_deleted(stack: StandIn, program: Program) -> None:
    stack.enable("compute")
    program(
        """
net = raw("gcp:compute/network:Network", "net", autoCreateSubnetworks=False)
raw("gcp:compute/subnetwork:Subnetwork", "sub", network=net.id, ipCidrRange="10.0.0.0/24",
    opts=ResourceOptions(retain_on_delete=True))
forced = storage.Bucket("forced", location="EU", versioning={"enabled": True}, force_destroy=True)
pulumi.export("forced", forced.name)
b = storage.Bucket("full", location="EU")
storage.BucketObject("object", bucket=b.name, name="a/b.txt", source=pulumi.StringAsset("some text"))
storage.BucketObject("secret", bucket=b.name, name="s.txt", content=Output.secret("hush-hush"))
pulumi.export("bucket", b.name)
"""
    )
    stack.up()
    outputs = stack.outputs()
    bucket, forced = stack.gcs().bucket(outputs["bucket"]), stack.gcs().bucket(outputs["forced"])
    for content in ("one version", "and another"):
        forced.blob("o.txt").upload_from_string(content)
    assert bucket.blob("a/b.txt").download_as_bytes() == b"some text"
    assert "hush-hush" not in stack.pulumi("stack", "export")
    bucket.blob("a/b.txt").upload_from_string("changed by hand")
    bucket.blob("s.txt").delete()
    drift = {n: op for n, op in stack.steps("dev", "--refresh").items() if op not in ("refresh", "read")}
    assert set(drift) == {"object", "secret"}
    assert drift["secret"] == "create"
    bucket.blob("other.txt").upload_from_string("not Pulumi's")
    output = stack.destroy("--continue-on-error", ok=False)
    assert "delete of Network 'net': googleapi: Error 400" in output
    assert "resourceInUseByAnotherResource" in output
    assert "containing objects without `force_destroy`" in output
    assert set(stack.resources()) == {NETWORK, SUBNETWORK, BUCKET}
    assert stack.resources()[BUCKET] == [bucket.name]


@slow
def test_kept_bucket_is_found_and_adopted(stack: StandIn, program: Program) -> None:
    text = """
name = P + "-kept"
there = [b.name for b in storage.get_buckets(prefix=name, project=P).buckets]
objects = [o.name for o in storage.get_bucket_objects(bucket=name).bucket_objects] if there else []
content = storage.get_bucket_object_content(bucket=name, name=objects[0]).content if objects else ""
bucket = storage.Bucket("kept", name=name, location="EU", labels={"a": "b"}, uniform_bucket_level_access=True,
    opts=ResourceOptions(retain_on_delete=True, import_=name if there else None))
rule = {"action": {"type": "Delete"}, "condition": {"age": 7}}
storage.Bucket("other", name=P + "-other", location="EU", public_access_prevention="enforced", lifecycle_rules=[rule],
    opts=ResourceOptions(import_=P + "-other"))
member = serviceaccount.Account("account", account_id="reader-one").member
storage.BucketIAMMember("grant", bucket=bucket.name, role="roles/storage.objectViewer", member=member)
pulumi.export("found", [there, objects, content])
"""
    stack.enable("iam")
    stack.gcs().create_bucket(f"{stack.project}-other", location="EU")
    program(text)
    assert "Bucket other imported" in stack.up()
    stack.pulumi("preview", "--refresh", "--expect-no-changes")
    reader = f"serviceAccount:reader-one@{stack.project}.iam.gserviceaccount.com"
    kept = f"{stack.project}-kept"
    assert stack.allowed(reader, "storage.objects.get", f"buckets/{kept}")
    assert not stack.allowed(reader, "storage.objects.create", f"buckets/{kept}")
    stack.gcs().bucket(kept).blob("o.txt").upload_from_string("still here")
    stack.destroy()
    assert stack.resources() == {BUCKET: [kept]}
    assert not stack.allowed(reader, "storage.objects.get", f"buckets/{kept}")
    stack.gcs().create_bucket(f"{stack.project}-other", location="EU")
    assert "Bucket kept imported" in stack.up()
    assert stack.outputs()["found"] == [[kept], ["o.txt"], "still here"]


@slow
def test_preview_shows_the_outputs_that_the_provider_plans(stack: StandIn, program: Program) -> None:
    program(
        """
import pulumi_gcp as gcp
p = gcp.Provider("p", project=P, region="europe-west1", default_labels={"run": "r1"})
o = ResourceOptions(provider=p)
account = serviceaccount.Account("account", account_id="the-account", opts=o)
projects.IAMMember("grant", project=P, role="roles/logging.logWriter", member=account.member, opts=o)
bucket = storage.Bucket("bucket", location="EU", labels={"own": "x"}, opts=o)
net = compute.Network("net", auto_create_subnetworks=False, opts=o)
compute.Subnetwork("sub", network=net.id, ip_cidr_range="10.0.0.0/24", opts=o)
pulumi.export("email", account.email)
pulumi.export("labels", bucket.effective_labels)
pulumi.export("network", net.self_link)
"""
    )
    stack.enable("compute", "iam", "cloudresourcemanager")
    shown = stack.pulumi("preview", "--diff")
    email = f"the-account@{stack.project}.iam.gserviceaccount.com"
    assert f'member : "serviceAccount:{email}"' in shown, "who gets the grant is known before the account is there"
    assert f'email  : "{email}"' in shown
    assert "labels : [secret]" in shown
    assert "network: [unknown]" in shown
    stack.up()
    assert stack.outputs()["labels"] == {"goog-pulumi-provisioned": "true", "own": "x", "run": "r1"}
    assert f"projects/{stack.project}/global/networks/net-" in stack.outputs()["network"]
    stack.up("--expect-no-changes")
    main = stack.root / "__main__.py"
    main.write_text(main.read_text().replace("r1", "r2"))
    assert stack.steps()["bucket"] == "update"


@slow
def test_ignored_changes_and_sizes_changed_elsewhere_are_no_difference(stack: StandIn, program: Program) -> None:
    text = """
network = raw("gcp:compute/network:Network", "n", autoCreateSubnetworks=False)
raw("gcp:compute/firewall:Firewall", "f", network=network.id, priority=PRIORITY,
    allows=[{"protocol": "tcp"}], sourceRanges=["10.0.0.0/8", "192.168.0.0/16"],
    opts=ResourceOptions(ignore_changes=["priority"]))
"""
    stack.enable("compute")
    program(text.replace("PRIORITY", "1000"))
    stack.up()
    program(text.replace("PRIORITY", "900").replace('"10.0.0.0/8", "192.168.0.0/16"', '"192.168.0.0/16", "10.0.0.0/8"'))
    assert stack.steps() == {}, "ignored, and Google's lists of ranges have no order"
    (firewall,) = stack.resources()[FIREWALL]
    stack.change(FIREWALL, firewall, priority=7)
    stack.pulumi("preview", "--refresh", "--expect-no-changes")
    stack.change(FIREWALL, firewall, sourceTags=["opened"])
    assert stack.steps("dev", "--refresh")["f"] == "update"


@slow
def test_image_is_built_by_up_alone(stack: StandIn, program: Program) -> None:
    folder = stack.root / "image"
    folder.mkdir()
    for name, content in {
        "Dockerfile": "FROM scratch\n",
        "code.py": "1",
        ".dockerignore": "*.log\n",
        "a.log": "1",
    }.items():
        (folder / name).write_text(content)
    program(
        """
import pulumi_docker_build as build
repository = artifactregistry.Repository("r", repository_id="repo", format="DOCKER", location="us-central1")
image = build.Image("i", tags=["us-central1-docker.pkg.dev/" + P + "/repo/trainer:t"], push=True,
    context={"location": "image"}, build_on_preview=False,
    opts=ResourceOptions(depends_on=[repository], retain_on_delete=True))
pulumi.export("ref", image.ref)
"""
    )
    stack.enable("artifactregistry")
    assert "ref: [unknown]" in stack.pulumi("preview", "--diff"), "a preview builds nothing"
    assert stack.images() == {}
    stack.up()
    ref = stack.outputs()["ref"]
    tag = f"us-central1-docker.pkg.dev/{stack.project}/repo/trainer:t"
    assert ref == f"{tag}@{stack.images()[tag]}"
    (folder / "a.log").write_text("2")
    stack.up("--expect-no-changes")
    (folder / "code.py").write_text("2")
    assert stack.steps() == {"i": "update"}


@slow
def test_lookup_of_a_disabled_api_fails(stack: StandIn, program: Program) -> None:
    program('artifactregistry.get_repositories(location="us-central1", project=P)')
    assert "Error 403: artifactregistry.googleapis.com has not been used" in stack.pulumi("preview", ok=False)


@slow
def test_missing_project_is_an_error(stack: StandIn) -> None:
    (stack.root / "Pulumi.dev.yaml").write_text("config: {}\n")
    stack.program("from pulumi_gcp import storage\nstorage.Bucket('b', location='EU')\n")
    assert "gcp:project" in stack.pulumi("preview", ok=False)


def test_plugin_ends_when_it_is_interrupted() -> None:
    command = [sys.executable, "-I", str(Path(__file__).with_name("provider.py")), "gcp", "10.2.0", "127.0.0.1:1"]
    environment = {**os.environ, "GPT2_TRAINING_STANDIN": "http://127.0.0.1:1"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as plugin:
        assert plugin.stdout is not None
        assert int(plugin.stdout.readline()) > 0
        plugin.send_signal(signal.SIGINT)
        assert plugin.wait(timeout=30) == 0


@pytest.mark.parametrize("url", ["", "https://compute.googleapis.com", "http://10.0.0.1:80", "127.0.0.1:80"])
def test_plugin_without_a_daemon_on_this_machine_does_not_start(url: str) -> None:
    command = [sys.executable, "-I", str(Path(__file__).with_name("provider.py")), "gcp", "10.2.0", "127.0.0.1:1"]
    environment = {**os.environ, "GPT2_TRAINING_STANDIN": url}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stdout == ""
    assert "not the address of a daemon on this machine" in done.stderr

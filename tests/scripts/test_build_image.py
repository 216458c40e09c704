"""scripts.build_image: the packed files, the calls to Cloud Build, and the build's end."""

import io
import os
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest
from google.auth.credentials import AnonymousCredentials
from google.cloud import storage as gcs

from scripts import build_image
from scripts.support import common
from scripts.support.build_context import pack
from scripts.support.common import UserError
from tests.scripts.google import Call, FakeGoogle, project
from trainer.contract.identity import code_hash
from trainer.storage.factory import open_storage

REPOSITORY = "projects/test-project/locations/us-central1/repositories/gpt2-dev"
BUILDS = "projects/test-project/locations/us-central1/builds"
IMAGE = "us-central1-docker.pkg.dev/test-project/gpt2-dev/trainer"
DIGEST = f"sha256:{'ab' * 32}"
TRAINER = Path(build_image.__file__).parents[1] / "trainer"


@pytest.fixture
def ready(google: FakeGoogle, gcs_address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeGoogle:
    """Let Google have the stack's repository and data bucket, and accept builds."""
    monkeypatch.setattr(common, "CHECKOUT", project(tmp_path))
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://{gcs_address}")
    client = gcs.Client(project="test", credentials=AnonymousCredentials())
    name = "test-project-dev-gpt2-data"
    if client.lookup_bucket(name) is None:
        client.create_bucket(name)
    google.on("artifactregistry", "GET", REPOSITORY, {"name": REPOSITORY, "format": "DOCKER"})
    google.on("cloudbuild", "POST", BUILDS, {"name": "operations/1", "metadata": {"build": {"id": "b-1"}}})
    return google


def states(google: FakeGoogle, *builds: dict[str, Any]) -> None:
    left = list(builds)
    google.on("cloudbuild", "GET", f"{BUILDS}/b-1", lambda call: left.pop(0) if len(left) > 1 else left[0])


def build() -> tuple[str, list[str]]:
    said: list[str] = []
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    digest = build_image.build_image(common.google_stack("dev"), said.append, clock=lambda: now[0], sleep=sleep)
    return digest, said


def test_build_uploads_the_code_and_returns_the_pushed_digest(ready: FakeGoogle) -> None:
    done = {"status": "SUCCESS", "results": {"images": [{"name": f"{IMAGE}:x", "digest": DIGEST}]}}
    working = {"status": "WORKING", "logUrl": "https://console.example.com/b-1"}
    states(ready, {"status": "QUEUED"}, *[working] * 8, done)
    digest, said = build()
    assert digest == DIGEST
    tag = code_hash(TRAINER)
    (asked,) = [call.body for call in ready.calls if call.verb == "POST"]
    source = asked["source"]["storageSource"]
    assert (source["bucket"], source["object"]) == ("test-project-dev-gpt2-data", f"build/{tag}.tar.gz")
    content, generation = open_storage("gs://test-project-dev-gpt2-data").read_generation(source["object"])
    assert str(generation) == source["generation"]
    assert content == pack(TRAINER)
    assert asked["images"] == [f"{IMAGE}:{tag}"]
    assert asked["steps"] == [
        {
            "name": "gcr.io/cloud-builders/docker",
            "args": ["build", "--tag", f"{IMAGE}:{tag}", "."],
            "env": ["DOCKER_BUILDKIT=1"],
        }
    ]
    assert asked["options"] == {"logging": "CLOUD_LOGGING_ONLY"}
    words = [line.partition(" after ")[0] for line in said]
    assert words[1:] == ["build b-1 QUEUED", "build b-1 WORKING", "build b-1 WORKING", "build b-1 SUCCESS"]


def test_image_in_the_registry_is_not_built_again(ready: FakeGoogle, capsys: pytest.CaptureFixture[str]) -> None:
    tag = f"{REPOSITORY}/packages/trainer/tags/{code_hash(TRAINER)}"
    version = f"{REPOSITORY}/packages/trainer/versions/{DIGEST}"
    ready.on("artifactregistry", "GET", tag, {"name": tag, "version": version})
    assert build_image.main([]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"already built: {IMAGE}:{code_hash(TRAINER)}\n")
    assert out.endswith(f"  gpt2-training:image: {IMAGE}@{DIGEST}\n")
    assert ready.paths("cloudbuild") == []


@pytest.mark.parametrize(
    ("ended", "words"),
    [
        (
            {"status": "FAILURE", "failureInfo": {"type": "USER_BUILD_STEP", "detail": "step 0 exited\n with 1"}},
            "the build ended with FAILURE: step 0 exited with 1; its log: in the console",
        ),
        (
            {"status": "FAILURE", "failureInfo": {"type": "FETCH_SOURCE_FAILED", "detail": "denied"}},
            "roles/storage.objectViewer on gs://test-project-dev-gpt2-data, roles/artifactregistry.writer on gpt2-dev",
        ),
        ({"status": "TIMEOUT", "logUrl": "https://l"}, "ended with TIMEOUT: no reason was given; its log: https://l"),
        ({"status": "CANCELLED", "statusDetail": "by a person"}, "ended with CANCELLED: by a person"),
    ],
)
def test_failed_build_gives_the_reason(ready: FakeGoogle, ended: dict[str, Any], words: str) -> None:
    states(ready, {"status": "WORKING"}, ended)
    with pytest.raises(UserError) as error:
        build()
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_build_is_followed_through_errors_of_google(ready: FakeGoogle) -> None:
    answers = iter([500, 503])

    def sometimes(call: Call) -> dict[str, Any]:
        if next(answers, None) is None:
            return {"status": "SUCCESS", "results": {"images": [{"digest": DIGEST}]}}
        raise ConnectionAbortedError  # the connection breaks

    ready.on("cloudbuild", "GET", f"{BUILDS}/b-1", sometimes)
    assert build()[0] == DIGEST


def test_build_without_cloud_build_names_the_command_that_enables_it(
    ready: FakeGoogle, monkeypatch: pytest.MonkeyPatch
) -> None:
    states(ready, {"status": "WORKING"})
    ready.deny("cloudbuild", message="Cloud Build API has not been used in project 1 before")
    with pytest.raises(UserError, match=r"gcloud services enable cloudbuild\.googleapis\.com --project test-project"):
        build()


def test_build_in_a_region_that_is_closed_to_the_project_names_the_quota(ready: FakeGoogle) -> None:
    message = "failed precondition: due to quota restrictions, Cloud Build cannot run builds in this region"
    refusal = {"error": {"code": 400, "message": message, "status": "FAILED_PRECONDITION"}}
    ready.on("cloudbuild", "POST", BUILDS, refusal, 400)
    with pytest.raises(
        UserError, match=r"Regional Public Pool\) in us-central1, or run `pulumi up` on a machine"
    ) as error:
        build()
    assert "\n" not in str(error.value)


def test_build_before_the_first_up_makes_bucket_and_repository(ready: FakeGoogle) -> None:
    client = gcs.Client(project="test", credentials=AnonymousCredentials())
    client.bucket("test-project-dev-gpt2-data").delete(force=True)
    states(ready, {"status": "SUCCESS", "results": {"images": [{"name": f"{IMAGE}:x", "digest": DIGEST}]}})
    missing = {"error": {"message": "not found"}}
    made: list[Call] = []

    def make(call: Call) -> dict[str, Any]:
        made.append(call)
        ready.on("artifactregistry", "GET", REPOSITORY, {"name": REPOSITORY, "format": "DOCKER"})
        return {"name": "operations/2"}

    ready.on("artifactregistry", "GET", REPOSITORY, missing, 404)
    ready.on("artifactregistry", "POST", REPOSITORY.rpartition("/")[0], make)
    assert build()[0] == DIGEST
    (call,) = made
    assert call.body["cleanupPolicies"]["keep-newest"]["mostRecentVersions"] == {"keepCount": 10}
    assert call.body["labels"] == {"gpt2-stack": "dev", "goog-pulumi-provisioned": "true"}
    assert client.lookup_bucket("test-project-dev-gpt2-data") is not None


def test_repository_that_may_not_be_made_names_the_missing_role(ready: FakeGoogle) -> None:
    ready.on("artifactregistry", "GET", REPOSITORY, {"error": {"message": "not found"}}, 404)
    denied = {"error": {"message": "Artifact Registry API has not been used in project 1 before"}}
    ready.on("artifactregistry", "POST", REPOSITORY.rpartition("/")[0], denied, 403)
    with pytest.raises(UserError, match=r"repository gpt2-dev cannot be made: .*artifactregistry\.admin"):
        build()


# The build context.


def test_context_is_the_same_for_the_same_files(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    for folder in (second, first):
        folder.mkdir()
        for name in ("b.py", "a.py") if folder == first else ("a.py", "b.py"):
            (folder / name).write_text(name)
    os.utime(first / "a.py", (1, 1))
    (first / "b.py").chmod(0o700)
    assert pack(first) == pack(second)
    with tarfile.open(fileobj=io.BytesIO(pack(first))) as tar:
        assert tar.getnames() == ["a.py", "b.py"]
        assert tar.extractfile("a.py").read() == b"a.py"  # type: ignore[union-attr]


def test_context_of_the_trainer_is_its_code_and_nothing_else() -> None:
    with tarfile.open(fileobj=io.BytesIO(pack(TRAINER))) as tar:
        names = set(tar.getnames())
    code = {path.relative_to(TRAINER).as_posix() for kind in ("*.py", "*.html") for path in TRAINER.rglob(kind)}
    assert names == code | {"requirements.txt", "Dockerfile", ".dockerignore"}
    assert any(name.endswith("page.html") for name in names)


@pytest.mark.skipif(shutil.which("tar") is None, reason="no tar here")
def test_context_is_unpacked_by_tar(tmp_path: Path) -> None:
    (tmp_path / "c.tar.gz").write_bytes(pack(TRAINER))
    subprocess.run(["tar", "-xzf", "c.tar.gz"], cwd=tmp_path, check=True)
    assert (tmp_path / "__main__.py").read_bytes() == (TRAINER / "__main__.py").read_bytes()

"""The declared rights on objects, through the stand-in's proxy: attacks are refused, and runs have what they need."""

import contextlib
import json
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from google.api_core import exceptions as api
from google.cloud import storage as gcs

from infra.google.object_rights import WRITE, Objects, Right, controller_rights, machine_rights
from infra.stack.config import StackConfig
from tests.google_cloud import buckets, iam
from tests.google_cloud.cloud import Cloud
from tests.google_cloud.errors import CloudError
from tests.google_cloud.storage_proxy import StorageProxy
from tests.infra.google_graph import make_root, read, stack_values
from tests.trainer.conftest import new_run
from tests.trainer.google_vm import Vm
from tests.trainer.running import PATIENCE, Run
from tests.trainer.runs.test_trials import RATE, declared
from trainer.contract import paths
from trainer.contract.spec import JobSpec, Role
from trainer.storage.base import Refused, Storage
from trainer.storage.factory import open_storage

__all__ = ["new_run"]
MEMBER = "gcp:storage/bucketIAMMember:BucketIAMMember"
ROLES: tuple[Role, ...] = ("master", "worker", "ps")
OTHER = "gpt2-0000dead"


class Rights:
    """Two buckets on a cloud without a daemon, whose grants are those that a stack declares for a run."""

    def __init__(self, folder: Path, storage: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self._storage, self._environment = storage, monkeypatch
        self.project = f"p{uuid.uuid4().hex[:8]}"
        values = stack_values() | {"gcp:project": self.project}
        self.config: StackConfig = read(values, make_root(folder / "root"))
        (folder / "cloud").mkdir()
        self.cloud = Cloud(folder / "cloud", "", storage)
        iam.register(self.cloud)
        buckets.register(self.cloud)
        for name in ("iam", "cloudresourcemanager"):
            self.cloud.apis.add(f"{self.project}/{name}.googleapis.com")
        self.proxies: dict[str, StorageProxy] = {}
        for role in ROLES:
            account = self.create("gcp:serviceaccount/account:Account", accountId=f"gpt2-dev-{role}")
            self.proxies[role] = StorageProxy(self.cloud, account["email"], role)
        for url in (self.config.bucket, self.config.data_bucket):
            name = url.removeprefix("gs://")
            self.create("gcp:storage/bucket:Bucket", name=name, location="US", uniformBucketLevelAccess=True)
        self.artifacts, self.data = (self._open(storage, url) for url in (self.config.bucket, self.config.data_bucket))

    def create(self, token: str, **props: Any) -> dict[str, Any]:
        props = {"project": self.project, **props}
        return self.cloud.create(token, props, list(props), self.project).state

    def grant(self, member: str, right: Right) -> None:
        bucket = right.bucket.removeprefix("gs://")
        expression = right.objects.condition(bucket, listed=right.role != WRITE)
        email = f"gpt2-dev-{member}@{self.project}.iam.gserviceaccount.com"
        self.create(
            MEMBER,
            bucket=bucket,
            role=right.role,
            member=f"serviceAccount:{email}",
            condition={"title": "t", "expression": expression},
        )

    def declare(self, job: JobSpec) -> None:
        """Replace the grants by those of a run."""
        for old in self.cloud.find(MEMBER):
            self.cloud.delete(MEMBER, old.id, self.project)
        for role in ROLES:
            for right in machine_rights(self.config, job, role):
                self.grant(role, right)

    def machine(self, role: str, url: str = "") -> Storage:
        """Return a bucket, the run's if none is named, as a machine of this role reaches it."""
        return self._open(self.proxies[role].url, url or self.config.bucket)

    def _open(self, server: str, url: str) -> Storage:
        with self._environment.context() as environment:
            environment.setenv("STORAGE_EMULATOR_HOST", server)
            return open_storage(url)

    def close(self) -> None:
        for proxy in self.proxies.values():
            proxy.close()


@pytest.fixture
def rights(tmp_path: Path, gcs_address: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rights]:
    made = Rights(tmp_path, f"http://{gcs_address}", monkeypatch)
    yield made
    made.close()


@pytest.fixture
def job(rights: Rights) -> JobSpec:
    """Return a job with parameter servers that starts from the model of another run; its files are in the buckets."""
    text = f"{rights.config.data_bucket}/data/0123/my.txt"
    made = JobSpec.model_validate(
        {
            "run": "gpt2-12345678", "fingerprint": "0123", "code": "c", "hyperparameters": {"steps": 10},
            "cluster": {"workers": 1, "parameterServers": 1},
            "data": {
                "path": text, "tokenizer": "gpt2", "vocabularyPath": f"{rights.config.data_bucket}/{paths.VOCABULARY}",
            },
            "model": {"initialize": f"{rights.config.bucket}/{paths.model('gpt2-0a1b2c3d')}"},
        }
    )  # fmt: skip
    rights.declare(made)
    tokens = paths.tokens("0123", made.data.tokens_key())
    for run in (made.run, OTHER, "gpt2-0a1b2c3d", paths.trial_id(made.run, 1)):
        for path in (paths.job(run), paths.status(run), f"{paths.model(run)}/config.json", paths.launch(run, 1)):
            rights.artifacts.write(path, b"{}")
    for path in (paths.CURRENT, f"{tokens}/manifest.json", "data/0123/other/manifest.json"):
        rights.artifacts.write(path, b"{}")
    for path in ("data/0123/my.txt", "data/9999/other.txt", f"{paths.VOCABULARY}/vocab.json", paths.image_source("1")):
        rights.data.write(path, b"text")
    return made


Ask = Callable[[Rights, JobSpec, Role], object]
ATTACKS: dict[str, Ask] = {
    "write another run's checkpoint": lambda r, j, role: r.machine(role).write(f"{paths.checkpoints(OTHER)}/x", b""),
    "write a run whose name begins alike": lambda r, j, role: r.machine(role).write(paths.status(f"{j.run}0"), b""),
    "replace another run's job": lambda r, j, role: r.machine(role).write(paths.job(OTHER), b""),
    "replace another run's model": lambda r, j, role: r.machine(role).write(paths.model_manifest(OTHER), b""),
    "replace the model to start from": lambda r, j, role: r.machine(role).write(
        f"{paths.model('gpt2-0a1b2c3d')}/config.json", b""
    ),
    "delete another run's model": lambda r, j, role: r.machine(role).delete(f"{paths.model(OTHER)}/config.json"),
    "replace its own job": lambda r, j, role: r.machine(role).write(paths.job(j.run), b""),
    "delete its own job": lambda r, j, role: r.machine(role).delete(paths.job(j.run)),
    "declare a launch": lambda r, j, role: r.machine(role).write(paths.launch(j.run, 2), b""),
    "replace its own launch": lambda r, j, role: r.machine(role).write(paths.launch(j.run, 1), b""),
    "replace current.json": lambda r, j, role: r.machine(role).write(paths.CURRENT, b""),
    "read another run's status": lambda r, j, role: r.machine(role).read(paths.status(OTHER)),
    "find out whether another run has a file": lambda r, j, role: r.machine(role).read(f"{paths.run(OTHER)}/absent"),
    "read the rest of the run to start from": lambda r, j, role: r.machine(role).read(paths.status("gpt2-0a1b2c3d")),
    "list the bucket": lambda r, j, role: r.machine(role).list(""),
    "list all runs": lambda r, j, role: r.machine(role).list(paths.RUNS),
    "list another run": lambda r, j, role: r.machine(role).list(paths.run(OTHER)),
    "list all tokens": lambda r, j, role: r.machine(role).list("data"),
    "read other tokens": lambda r, j, role: r.machine(role).read("data/0123/other/manifest.json"),
    "delete the text": lambda r, j, role: r.machine(role, r.config.data_bucket).delete("data/0123/my.txt"),
    "replace the text": lambda r, j, role: r.machine(role, r.config.data_bucket).write("data/0123/my.txt", b""),
    "read another text": lambda r, j, role: r.machine(role, r.config.data_bucket).read("data/9999/other.txt"),
    "read the image's source": lambda r, j, role: r.machine(role, r.config.data_bucket).read(paths.image_source("1")),
    "list the data bucket": lambda r, j, role: r.machine(role, r.config.data_bucket).list(""),
}
OF_OTHERS: dict[str, tuple[tuple[Role, ...], Ask]] = {
    "replace a trial's job": (
        ("worker", "ps"),
        lambda r, j, role: r.machine(role).write(paths.job(paths.trial_id(j.run, 1)), b""),
    ),
    "end the run": (("worker", "ps"), lambda r, j, role: r.machine(role).write(paths.end(j.run, 1), b"")),
    "replace the tokens": (("worker", "ps"), lambda r, j, role: r.machine(role).write(_tokens(j), b"")),
    "read the text": (
        ("worker", "ps"),
        lambda r, j, role: r.machine(role, r.config.data_bucket).read("data/0123/my.txt"),
    ),
    "read current.json": (("worker", "ps"), lambda r, j, role: r.machine(role).read(paths.CURRENT)),
    "read the tokens": (("ps",), lambda r, j, role: r.machine(role).read(_tokens(j))),
    "read the model to start from": (("ps",), lambda r, j, role: r.machine(role).list(paths.model("gpt2-0a1b2c3d"))),
}
CASES = [(name, role, ask) for name, ask in ATTACKS.items() for role in ROLES]
CASES += [(name, role, ask) for name, (roles, ask) in OF_OTHERS.items() for role in roles]


def _tokens(job: JobSpec) -> str:
    return f"{paths.tokens(job.fingerprint, job.data.tokens_key())}/manifest.json"


def test_machines_that_overstep_are_refused_and_change_nothing(rights: Rights, job: JobSpec) -> None:
    before = {entry.path: entry.generation for entry in [*rights.artifacts.list(""), *rights.data.list("")]}
    succeeded = []
    for name, role, ask in CASES:
        with contextlib.suppress(Refused):
            ask(rights, job, role)
            succeeded.append(f"{role}: {name}")
    assert succeeded == []
    assert before == {entry.path: entry.generation for entry in [*rights.artifacts.list(""), *rights.data.list("")]}


@pytest.mark.parametrize("role", ROLES)
def test_machine_reads_writes_lists_and_deletes_below_its_run(rights: Rights, job: JobSpec, role: Role) -> None:
    bucket, run = rights.machine(role), job.run
    for path in (paths.status(run), paths.lease(run), f"{paths.trial_id(run, 1)}", f"{paths.model(run)}/config.json"):
        path = path if path.endswith(".json") else f"{paths.run(path)}/metrics/a.jsonl"
        generation = bucket.write(path, b"1")
        bucket.write(path, b"2", if_generation=generation)  # to replace an object takes the right to delete it
        assert bucket.read(path) == b"2"
    for path in (paths.job(run), paths.job(paths.trial_id(run, 1)), paths.launch(run, 1)):
        assert bucket.read(path) == b"{}"
    assert paths.status(run) in {entry.path for entry in bucket.list(paths.run(run))}
    bucket.delete(paths.lease(run))
    with pytest.raises(FileNotFoundError):  # 404, as the account may list
        bucket.read(paths.lease(run))
    assert bucket.size(paths.lease(run)) is None


def test_master_makes_tokens_and_trainers_read_them_and_the_model(rights: Rights, job: JobSpec) -> None:
    master, tokens = rights.machine("master"), _tokens(job)
    master.write(tokens, b"whole")
    assert master.size(tokens) == 5
    assert json.loads(master.read(paths.CURRENT)) == {}
    master.write(paths.job(paths.trial_id(job.run, 2)), b"{}")
    data = rights.machine("master", rights.config.data_bucket)
    assert data.size("data/0123/my.txt") == 4
    assert data.read(f"{paths.VOCABULARY}/vocab.json") == b"text"
    with pytest.raises(FileNotFoundError):
        data.read(f"{paths.VOCABULARY}/encoder.json")
    for role in ("master", "worker"):
        bucket = rights.machine(role)
        assert bucket.read(tokens) == b"whole"
        assert [entry.path for entry in bucket.list(tokens.rpartition("/")[0])] == [tokens]
        model = paths.model("gpt2-0a1b2c3d")
        assert [entry.path for entry in bucket.list(model)] == [f"{model}/config.json"]
        assert bucket.read(f"{model}/config.json") == b"{}"


def test_large_upload_is_permitted_by_the_name_in_its_body(rights: Rights, job: JobSpec, tmp_path: Path) -> None:
    file = tmp_path / "part"
    file.write_bytes(b"x" * (9 * 1024 * 1024))  # more than one request carries
    rights.machine("ps").upload(file, f"{paths.checkpoints(job.run)}/a/part", if_generation=0)
    with pytest.raises(Refused):
        rights.machine("ps").upload(file, f"{paths.checkpoints(OTHER)}/a/part", if_generation=0)
    bucket = rights.machine("ps")._bucket  # type: ignore[attr-defined]
    source, stolen = (gcs.Blob(path, bucket) for path in (paths.status(OTHER), f"{paths.run(job.run)}/stolen"))
    with pytest.raises(api.Forbidden):  # to join objects reads them
        stolen.compose([source], retry=None)


def test_controller_reads_the_records_of_its_launch_and_writes_its_placement_and_end_alone(
    rights: Rights, job: JobSpec
) -> None:
    for old in rights.cloud.find(MEMBER):
        rights.cloud.delete(MEMBER, old.id, rights.project)
    for right in controller_rights(rights.config, job):
        rights.grant("ps", right)
    bucket = rights.machine("ps")
    with pytest.raises(FileNotFoundError):
        bucket.read(paths.placement(job.run, 1))
    bucket.write(paths.placement(job.run, 1), b"{}")
    bucket.write(paths.placement(job.run, 1), b"{ }")
    with pytest.raises(FileNotFoundError):
        bucket.read(paths.end(job.run, 1))
    assert [bucket.read(path) for path in (paths.CURRENT, paths.launch(job.run, 1))] == [b"{}", b"{}"]
    bucket.write(paths.end(job.run, 1), b"{}")
    others = (paths.placement(OTHER, 1), paths.end(OTHER, 1), paths.end(job.run, 2))
    for path in (paths.launch(job.run, 1), paths.CURRENT, *others):
        with pytest.raises(Refused):
            bucket.write(path, b"{}")
    for path in (paths.job(job.run), paths.status(job.run), paths.launch(OTHER, 1)):
        with pytest.raises(Refused):
            bucket.read(path)
    with pytest.raises(Refused):
        bucket.list(paths.run(job.run))


def test_account_that_may_not_list_or_delete_learns_of_no_absence_and_replaces_nothing(rights: Rights) -> None:
    member = f"serviceAccount:gpt2-dev-ps@{rights.project}.iam.gserviceaccount.com"
    for role in ("legacyObjectReader", "objectCreator"):
        rights.create(MEMBER, bucket=rights.config.bucket[5:], role=f"roles/storage.{role}", member=member)
    bucket = rights.machine("ps")
    bucket.write("new", b"1")
    assert bucket.read("new") == b"1"
    for ask in (lambda: bucket.read("absent"), lambda: bucket.write("new", b"2"), lambda: bucket.delete("new")):
        with pytest.raises(Refused):
            ask()


def test_condition_that_google_refuses_is_refused_here(rights: Rights) -> None:
    many = Objects(folders=tuple(map(str, range(14))))
    with pytest.raises(CloudError, match="13 logical operators"):
        rights.grant("ps", Right(rights.config.bucket, WRITE, many))
    rights.create("gcp:storage/bucket:Bucket", name=f"{rights.project}-acl", location="US")
    with pytest.raises(CloudError, match="uniform bucket-level access"):
        rights.grant("ps", Right(f"gs://{rights.project}-acl", WRITE, Objects(folders=("a",))))


@pytest.mark.slow
def test_sweep_and_a_run_with_servers_from_its_model_need_no_other_right(
    rights: Rights, new_run: Callable[..., Run], tmp_path: Path
) -> None:
    # A sweep of two trials, on a master and a worker.
    small = {"hyperparameters": {"steps": 12}, "checkpoints": {"every": 4}, "evaluation": {"every": 6}}
    sweep = new_run(run="gpt2-11111111", sweep=declared(RATE, maxTrials=2).to_json(), cluster={"workers": 1}, **small)
    first = _train(rights, sweep, tmp_path / "first", "master", "worker")
    assert rights.artifacts.read(paths.model_manifest(paths.trial_id(first, 2)))

    # Another run starts from its model, with a parameter server. Its machines may no longer write the sweep.
    model = {"initialize": f"{rights.config.bucket}/{paths.model(first)}"}
    served = new_run(run="gpt2-22222222", model=model, cluster={"workers": 1, "parameterServers": 1}, **small)
    second = _train(rights, served, tmp_path / "second", "master", "worker", "ps")
    assert rights.artifacts.list(paths.checkpoints(second))
    with pytest.raises(Refused):
        rights.machine("master").write(paths.status(first), b"")


def _train(rights: Rights, run: Run, folder: Path, *roles: Role) -> str:
    """Train a run to its end on machines that have the declared rights; return its name."""
    data = rights.config.data_bucket
    content, path = run.storage.read(run.spec.data.path), run.spec.data.path
    rights.data.write(path, content)
    run.storage = rights.artifacts
    run.spec = run.spec.model_copy(update={"data": run.spec.data.model_copy(update={"path": f"{data}/{path}"})})
    run.write_spec()
    rights.artifacts.write(paths.CURRENT, json.dumps({"run": run.spec.run, "launch": 1}).encode())
    rights.declare(run.spec)
    folder.mkdir()
    vms = [Vm(folder, role) for role in roles]
    try:
        for vm in vms:
            vm.environment["STORAGE_EMULATOR_HOST"] = rights.proxies[vm.role].url
        processes = [vm.start(run) for vm in vms]
        codes = [process.wait(PATIENCE) for process in processes]
        status = run.status()
        said = "\n".join(vm.lines.read_text() for vm in vms)
        assert status is not None, said
        assert (codes, status.state) == ([0] * len(vms), "SUCCEEDED"), said
        assert "no permission" not in said, said
        assert "no report was written" not in said, said
        assert rights.artifacts.read(paths.report(run.spec.run))
    finally:
        for vm in vms:
            assert vm.rest.wrong == []
            vm.close()
    return run.spec.run

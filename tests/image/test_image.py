"""The real image: trainer/Dockerfile, built, pushed, pulled and run by boot.sh's own commands, trains to the end.

`make image-test` runs it; it is not part of `make test`, as it takes minutes, gigabytes, root and a Docker engine. Two
images are built of the same code. One installs its requirements and trains. The other is pushed and pulled; it gets
this environment's packages as a volume, because a registry takes minutes for PyTorch's layer.
"""

import io
import os
import signal
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from scripts.support.build_context import pack
from scripts.support.downloading import fetched
from tests.image import base, contents
from tests.image import engine as engines
from tests.image.contents import UID
from tests.image.engine import TOKEN, Engine
from tests.trainer.google_vm import JOB, Vm, into_bucket
from tests.trainer.running import PATIENCE, ROOT, Run
from trainer.contract import metric_names
from trainer.contract.log_phrases import SUCCEEDED

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]
BOOT = ROOT / "infra/google/boot.sh"
RUN = "gpt2-0123abcd"
STEPS = 2000
# The docker command that boot.sh calls. It differs in two options: machines share an engine, so each container has a
# name of its own; and Cloud Logging's driver needs Google, so Docker's own log driver replaces it, with the same
# option. The packages come as a volume. boot.sh throws away a container's output; here it is kept.
DOCKER = """#!/bin/bash
words=()
for word; do
    case $word in
        trainer) word=$CONTAINER ;;
        gcplogs) word=json-file ;;
    esac
    words+=("$word")
done
[[ $1 != run ]] || exec >>"$PRINTED"
[[ $1 != run ]] || words=(run "$PACKAGES" "${words[@]:1}")
exec "$CLIENT" "${words[@]}"
"""


class Machine:
    """A VM's startup script at work, with a metadata server, Google's REST services and the docker command."""

    def __init__(self, folder: Path, engine: Engine, run: Run, role: str, image: str) -> None:
        folder.mkdir()
        self._engine, self._folder, self.container = engine, folder, f"gpt2-test-{os.getpid()}-{role}"
        attributes = {"gpt2-bucket": run.storage.url, "gpt2-run": RUN, "gpt2-image": image, "gpt2-gpus": "0"}
        self.vm = Vm(folder, role, **attributes, **{"gpt2-launch": "1"})
        self.vm.rest.end_vm = self.shut_down  # as the controller does, which the master asks for that
        (folder / "docker").write_text(DOCKER)
        (folder / "docker").chmod(0o755)
        self.boot: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        environment = {
            **os.environ,  # it has the address of the test's bucket
            **self._engine.variables,
            **self.vm.environment,
            "PATH": f"{self._folder}:{os.environ['PATH']}",
            "DOCKER_CONFIG": str(self._folder / "login"),
            "CLIENT": self._engine.client,
            "CONTAINER": self.container,
            "PRINTED": str(self._folder / "trainer.log"),
            "PACKAGES": base.MOUNT,
            "BOOT_PAUSE": "1",
            "BOOT_ROOT": str(self._folder / "root"),
        }
        with (self._folder / "boot.log").open("ab") as log:
            self.boot = subprocess.Popen([BOOT], env=environment, stdout=log, stderr=subprocess.STDOUT)

    def wait(self) -> None:
        """Wait until the script has ended without an error."""
        assert self.boot is not None
        assert self.boot.wait(PATIENCE) == 0, self.said() + self.printed()

    def shut_down(self) -> None:
        assert self.boot is not None
        self.boot.send_signal(signal.SIGTERM)

    def said(self) -> str:
        return (self._folder / "boot.log").read_text()

    def printed(self) -> str:
        return (self._folder / "trainer.log").read_text()

    def inspect(self, what: str) -> str:
        """Return a field of the running container; empty where there is none."""
        return self._engine.docker("inspect", "--format", what, self.container, check=False)

    def close(self) -> None:
        if self.boot is not None and self.boot.poll() is None:
            self.boot.send_signal(signal.SIGKILL)
            self.boot.wait()
        self._engine.docker("rm", "--force", self.container, check=False)
        self.vm.close()


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    """Return an engine that builds as Cloud Build does."""
    with engines.running(keep=True) as found:
        builders = [Engine(client, found.host, DOCKER_BUILDKIT="1") for client in engines.clients()]
        builder = next((builder for builder in builders if builder.has_buildkit()), None)
        yield builder or engines.missing("no docker here has BuildKit", "docker-buildx")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Unpack what Cloud Build gets of trainer/, and add two files that belong in no image."""
    folder = tmp_path_factory.mktemp("image") / "trainer"
    with tarfile.open(fileobj=io.BytesIO(pack(ROOT / "trainer"))) as archive:
        archive.extractall(folder, filter="data")
    (folder / "key.json").write_text("secret")
    (folder / "__pycache__").mkdir(exist_ok=True)
    (folder / "__pycache__/old.pyc").write_text("")
    return folder


@pytest.fixture(scope="module")
def image(engine: Engine, source: Path) -> Iterator[str]:
    """Return NAME@sha256:DIGEST of trainer/Dockerfile's image in a registry, without the requirements' code."""
    with engines.registry() as address:
        name = f"{address}/my-project/gpt2-dev/trainer"
        engine.build(source, f"{name}:test", network="none", BASE=base.furnished(engine))
        try:
            pushed = engine.push(f"{name}:test")
            assert pushed.startswith(f"{name}@sha256:")
            yield pushed
        finally:
            engine.docker("rmi", f"{name}:test", check=False)


@pytest.fixture
def new_machine(tmp_path: Path, engine: Engine, image: str) -> Iterator[Callable[[Run, str], Machine]]:
    made: list[Machine] = []

    def make(run: Run, role: str) -> Machine:
        made.append(Machine(tmp_path / f"vm-{role}", engine, run, role, image))
        return made[-1]

    yield make
    for machine in made:
        machine.close()


def test_image_with_its_own_packages_trains(engine: Engine, source: Path, tmp_path: Path) -> None:
    tag = "gpt2-training-test-trainer"  # the tag is kept: its layer of packages saves the next test minutes
    engine.build(source, tag, BASE=base.bare(engine))
    contents.assert_holds_the_code_and_nothing_else(engine, tag, source)
    contents.assert_every_module_imports(engine, tag, source)
    contents.assert_triton_has_its_compiler(engine, tag)
    run = Run(tmp_path / "bucket", hyperparameters={"steps": 40, "compile": True})
    (run.folder / ".lock").unlink()  # only its owner may use it
    for path in [run.folder, *run.folder.rglob("*")]:
        path.chmod(0o777 if path.is_dir() else 0o666)
    options = ("--rm", "--network", "none", "--shm-size", "1g", f"--volume={run.folder}:/bucket")
    cache = "--env=TORCHINDUCTOR_CACHE_DIR=/bucket/compiled"
    arguments = ("--bucket", "/bucket", "--run", run.spec.run, "--name", "master-0", "--role", "master")
    said = engine.docker("run", *options, cache, tag, *arguments)
    assert "torch.compile failed" not in said
    assert list((run.folder / "compiled").rglob("*.so"))
    status = run.status()
    assert status is not None
    assert (status.state, status.step) == ("SUCCEEDED", 40)


def test_pushed_image_holds_the_code_and_nothing_else(engine: Engine, image: str, source: Path) -> None:
    contents.assert_holds_the_code_and_nothing_else(engine, image, source)


def test_registry_refuses_a_pull_without_a_login(engine: Engine, image: str, tmp_path: Path) -> None:
    """Otherwise boot.sh's login would prove nothing."""
    assert engine.docker("--config", str(tmp_path), "pull", "--quiet", image, check=False) == ""


def test_containers_train_to_the_end(
    engine: Engine, tmp_path: Path, gcs_bucket: str, new_machine: Callable[[Run, str], Machine]
) -> None:
    # Without its worker the run waits, so it cannot end before the worker is back.
    cluster = {"workers": 1, "minWorkers": 1, "parameterServers": 1}
    # A checkpoint in progress when the worker gets its notice would hold it for its whole grace of 100 s.
    written = {"checkpoints": {"every": STEPS}, "hyperparameters": {"steps": STEPS}}
    local = Run(tmp_path / "source", run=RUN, cluster=cluster, **written)
    run = into_bucket(local, gcs_bucket)
    machines = {role: new_machine(run, role) for role in ("master", "worker", "ps")}
    for machine in machines.values():
        machine.start()
    run.until_step(20)
    for role, machine in machines.items():
        assert machine.inspect("{{.State.Running}} {{.HostConfig.NetworkMode}} {{.HostConfig.ShmSize}}") == (
            f"true host {2 * 1024**3}"
        )
        _, *processes = engine.docker("top", machine.container, "-eo", "pid,uid").splitlines()
        assert {line.split()[1] for line in processes} == {str(UID)}, role
        assert TOKEN not in machine.inspect("{{json .Config}}")

    # A machine is shut down: process 1 of its container gets the signal, saves its own files and leaves in time.
    worker = machines["worker"]
    worker.shut_down()
    worker.wait()
    assert worker.said().splitlines()[-1] == "gpt2-training: the trainer has left"
    assert worker.inspect("{{.State.Status}}") == ""  # nothing is left of the container
    assert run.machine("worker-x7kq").state == "stopped"
    # A container is lost: boot.sh sees the engine's code for a killed one, and starts another.
    engine.docker("kill", machines["ps"].container)
    run.until(lambda: "ended with code 137; restart 1 of 5" in machines["ps"].said(), "the lost container is seen")
    worker.start()  # the group brings the machine back
    for machine in machines.values():
        machine.wait()

    status = run.status()
    assert status is not None
    assert (status.state, status.step) == ("SUCCEEDED", STEPS)
    assert {record.trainers for record in run.records() if record.loss is not None} == {2}
    assert run.machine("ps-x7kq").state == "finished"
    folder = fetched(run.storage, RUN, tmp_path / "model")
    assert AutoModelForCausalLM.from_pretrained(folder).config.vocab_size == 257
    assert AutoTokenizer.from_pretrained(folder).decode([104, 105])

    # google-auth in the container found the metadata server: each call came with the VM's token, or is listed in
    # `wrong`.
    master = machines["master"].vm
    assert [machine.vm.rest.wrong for machine in machines.values()] == [[], [], []]
    assert master.rest.paths("cloudscheduler") == [f"{JOB}:run"]
    assert master.rest.points(metric_names.STEP)[-1] == STEPS
    assert f"{SUCCEEDED}{RUN}\n" in machines["master"].printed()
    assert not [role for role, machine in machines.items() if TOKEN in machine.said() + machine.printed()]

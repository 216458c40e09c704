"""Declare a machine of `platform: local`: a process that runs `python -m trainer`, also after `pulumi up` is over."""

import sys
from pathlib import Path

import pulumi
from pulumi.dynamic import CheckResult, CreateResult, DiffResult, ReadResult, Resource, UpdateResult

from infra.dynamic import Properties, Provider, changed, plain
from infra.fleet.host import host_gpus
from infra.local import processes
from infra.local.storage import folder
from trainer.contract.spec import JobSpec, Role
from trainer.runs.status import is_over
from trainer.storage.factory import open_storage

ROOT = Path(__file__).resolve().parent.parent.parent


class MachineProvider(Provider):
    """The inputs name the machine. `start` counts its processes, so that a dead one shows as a difference.

    `devices` are the GPUs that all trainers of the stack share out, as CUDA_VISIBLE_DEVICES names them; it is left out
    where there are none.
    """

    def check(self, olds: Properties, news: Properties) -> CheckResult:
        inputs = plain(news)
        start = str(olds.get("start") or "1")
        same = not changed(olds, {key: news[key] for key in ("bucket", "run", "launch", "name")})
        if not same:
            start = "1"
        elif not _in_order(inputs):
            start = f"{int(start.split(',')[0]) + 1}, because the process was gone"
        return CheckResult({**inputs, "start": start}, [])

    def diff(self, _id: str, olds: Properties, news: Properties) -> DiffResult:
        names = changed(olds, news)
        return DiffResult(changes=bool(names), replaces=sorted(names - {"start"}), delete_before_replace=True)

    def create(self, props: Properties) -> CreateResult:
        props = plain(props)
        machine = _machine(props)
        if not _is_over(props):
            command = [sys.executable, "-m", "trainer", "--bucket", props["bucket"], "--run", props["run"]]
            command += ["--name", props["name"], "--role", props["role"]]
            variables = {"CUDA_VISIBLE_DEVICES": props["devices"]} if "devices" in props else {}
            processes.start(machine, props["launch"], command, ROOT, variables)
        return CreateResult(f"{props['run']}/{props['launch']}/{props['name']}", {**props, "log": str(machine.log)})

    def update(self, _id: str, _olds: Properties, news: Properties) -> UpdateResult:
        return UpdateResult(self.create(news).outs)

    def read(self, id_: str, props: Properties) -> ReadResult:
        return ReadResult(id_ if _in_order(plain(props)) else "", props)

    def delete(self, _id: str, props: Properties) -> None:
        processes.stop(_machine(props).mark)


class Machine(Resource, module="local", name="Machine"):
    """A machine of a run."""

    def __init__(self, name: str, role: Role, bucket: str, job: JobSpec, opts: pulumi.ResourceOptions | None = None):
        props = {"bucket": bucket, "run": job.run, "launch": job.launch, "name": name, "role": role}
        if job.cluster.gpus and role != "ps":
            props["devices"] = ",".join(gpu.device for gpu in host_gpus())
        super().__init__(MachineProvider(), name, {**props, "log": None}, opts)


def _machine(props: Properties) -> processes.MachineProcess:
    return processes.MachineProcess(folder(props["bucket"]), props["run"], props["name"])


def _is_over(props: Properties) -> bool:
    return is_over(open_storage(props["bucket"]), props["run"], props["launch"]) is not None


def _in_order(props: Properties) -> bool:
    """Return whether the machine's process lives, or has left because the run is over."""
    return processes.alive(_machine(props)) or _is_over(props)

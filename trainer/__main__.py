"""Start here on a machine: `python -m trainer --bucket URL --run ID --name worker-0`."""

import argparse
import json
import os
import signal
import sys
from contextlib import suppress
from functools import partial

from pydantic import ValidationError

from trainer.compute.exit_codes import INPUT
from trainer.contract import paths
from trainer.contract.spec import JobSpec
from trainer.machine.supervisor import Supervisor, here
from trainer.machine.sweep import SweepMachine
from trainer.runs.status import read_spec
from trainer.storage.base import Storage, StorageError
from trainer.storage.factory import open_storage


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m trainer", description="One machine of a training run.")
    parser.add_argument("--bucket", required=True, help="gs://bucket, file:///folder or a folder")
    parser.add_argument("--run", required=True, help="the run's id: its folder below runs/")
    parser.add_argument("--name", required=True, help="this machine's name, such as worker-0")
    parser.add_argument("--role", choices=["master", "worker", "ps"], required=True)
    parser.add_argument("--address", default="127.0.0.1", help="this machine, as the others reach it")
    parser.add_argument("--platform", choices=["local", "google"], default="local", help="what machine this is")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # nothing runs yet; process 1 of a container has no default
    try:
        storage = open_storage(arguments.bucket)
        if arguments.platform == "google":
            return _on_google(storage, arguments)
        return _machine(storage, read_spec(storage, arguments.run), arguments).run()
    except FileNotFoundError:
        print(f"no run {arguments.run} in {arguments.bucket}: `pulumi up` declares it", file=sys.stderr)
    except StorageError as error:
        print(error, file=sys.stderr)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        line = f"{arguments.bucket}/{paths.job(arguments.run)}: {key}: {first['msg']}"
        print(line, file=sys.stderr)
        last = here(name=arguments.name, role=arguments.role, state="failed", message=line, log=[line])
        with suppress(StorageError, OSError):
            body = json.dumps(last.to_json()).encode()
            storage.write(paths.machine(arguments.run, arguments.name), body)
    return INPUT


def _machine(storage: Storage, spec: JobSpec, arguments: argparse.Namespace) -> "Supervisor | SweepMachine":
    """This machine, in one run or in all trials of a sweep."""

    def supervisor(of: JobSpec) -> Supervisor:
        return Supervisor(storage, of, arguments.name, arguments.role, arguments.address)

    return supervisor(spec) if spec.sweep is None else SweepMachine(storage, spec, arguments.role, supervisor)


def _on_google(storage: Storage, arguments: argparse.Namespace) -> int:
    from trainer.machine import google_vm  # 0.1 s of imports, Google's packages, that no local machine needs

    where = paths.job(arguments.run)
    spec = google_vm.retried(where, lambda: read_spec(storage, arguments.run), partial(print, flush=True))
    google_vm.await_rights(storage, spec, arguments.name, arguments.role)
    machine = _machine(storage, spec, arguments)
    return google_vm.supervise(machine, storage, spec, arguments.name, arguments.role)


if __name__ == "__main__":
    exit_code = main()
    try:
        sys.stdout.flush()
    except OSError:  # the disk of the log is full; Python would make exit code 120 of that
        os._exit(exit_code)
    sys.exit(exit_code)

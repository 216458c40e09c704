"""Carry out one process's part of a run, from its data to its model.

torch and transformers take 4 s of a core to import when their files are cached, and the tokens' libraries 0.1 s. They
are imported where they are needed, so that a machine reports what it waits for, and one that finds a finished run
leaves at once.
"""

import gc
import time

from trainer.compute.exit_codes import LEFT
from trainer.compute.process import Process
from trainer.contract.spec import JobSpec, Role
from trainer.runs import status as status_file
from trainer.storage.base import Storage


def take_part(process: Process, storage: Storage, run: str, role: Role) -> int:
    """Train or serve in `run` until its end, and return the exit code (exit_codes.py)."""
    spec = status_file.read_spec(storage, run)
    if status_file.is_over(storage, run, spec.launch):
        return 0
    return _serve(process, storage, spec) if role == "ps" else _train(process, storage, spec, role)


def _serve(process: Process, storage: Storage, spec: JobSpec) -> int:
    gc.disable()  # a sixth of the time that torch takes to import would go to looking for garbage
    from trainer.compute.member import make_server, run_member  # 1.5 s, as the module says

    return run_member(process, storage, spec, make_server, serves=True)


def _train(process: Process, storage: Storage, spec: JobSpec, role: Role) -> int:
    if role == "master":
        now = status_file.read_status(storage, spec.run)
        if now is None or now.state == "PROVISIONING":
            reason = "the trainers are starting"
            status_file.update_status(storage, spec.run, spec.launch, state="STARTING", reason=reason)
    process.report("importing")
    from trainer.data.prepare import check_enough, prepare  # 0.1 s
    from trainer.data.prepared import find_prepared

    def progress(done: int, total: int) -> None:
        process.report(f"tokenizing {spec.data.path}: {done / max(total, 1):.0%}")

    # The master makes tokens and tokenizer where they are missing; the others wait and say so.
    while process.name != "master-0" and find_prepared(storage, spec.data, spec.fingerprint) is None:
        process.report("waiting for master-0 to prepare the data")
        if process.stopping() or status_file.is_over(storage, spec.run, spec.launch):
            return LEFT if process.stopping() else 0
        time.sleep(0.5)
    prepared = prepare(storage, spec.data, spec.fingerprint, progress)
    check_enough(prepared, spec.hyperparameters.sequence_length, spec.hyperparameters.batch_size)

    process.report("loading torch and the model")
    gc.disable()  # as in _serve
    from trainer.compute.assembly import assemble  # 4 s
    from trainer.compute.member import run_member

    return run_member(process, storage, spec, lambda context: assemble(context, prepared))

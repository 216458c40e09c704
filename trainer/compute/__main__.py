"""The process that computes: read the spec, join the cluster, train or serve parameters, export.

Started by `python -m trainer`, which restarts it and reports for it. Exit codes: 0, the run is over; INPUT, the user's
input cannot be trained, and trying again is no use; LEFT, the machine was asked to leave (a notice, a stop); AWAY, the
bucket, the other members or GPUs were out of reach, which is no failure of the program. Any other code is a failure.
"""

import argparse
import os
import sys
import traceback

from trainer.cluster.lease import NoProgress
from trainer.compute.exit_codes import AWAY, INPUT
from trainer.compute.process import Process, die_with_parent
from trainer.compute.run import take_part
from trainer.contract.errors import InputError, MissingGpus
from trainer.runs.status import Fenced
from trainer.storage.base import StorageError, Unavailable
from trainer.storage.factory import open_storage


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m trainer.compute", description=__doc__)
    for option in ("--bucket", "--run", "--name", "--role", "--address"):
        parser.add_argument(option, required=True)
    arguments = parser.parse_args()
    die_with_parent()
    process = Process(arguments.name, arguments.address)
    try:
        return take_part(process, open_storage(arguments.bucket), arguments.run, arguments.role)
    except InputError as error:
        print(error, flush=True)
        return INPUT
    except (StorageError, Fenced, NoProgress, MissingGpus) as error:  # one line is enough; the supervisor tries again
        print(error, flush=True)
        return AWAY if isinstance(error, Unavailable | NoProgress | MissingGpus) else 1


if __name__ == "__main__":
    try:
        exit_code = main()
    except SystemExit as end:
        exit_code = int(end.code or 0)
    except BaseException:  # the interpreter would wait for threads that never end
        traceback.print_exc()
        exit_code = 1
    sys.stdout.flush()
    os._exit(exit_code)  # everything is written; torchft's and Triton's threads and destructors only make noise

"""Python programs that start at once: forked from a server that has imported the large libraries.

`python -m trainer` spends ten seconds of a core on importing torch and transformers, and the suite starts it hundreds
of times. A program started here is a process of its own like any other: with its own environment and descriptors,
killed and waited for, and so are the Python programs that it starts. Only `exec` is left out, and with it a hash seed
and modules of its own. Some tests start the command itself, as a machine does: those with forked=False,
tests/google_cloud and tests/image.
"""

import contextlib
import functools
import gc
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from multiprocessing import forkserver, reduction
from pathlib import Path
from typing import Any, NoReturn

# The slow imports of trainer/. Not trainer/ itself, which each process imports anew, and not Google's packages, which
# look for a metadata server when they are imported.
LIBRARIES = [
    "torch", "torch.distributed.fsdp", "torch.distributed.device_mesh", "torchft.coordination", "safetensors.torch",
    "transformers.models.gpt2.modeling_gpt2", "peft",
]  # fmt: skip
# Libraries read these variables while they are imported; the values are those of trainer/machine/supervisor.py.
SETTINGS = {
    "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "TRANSFORMERS_VERBOSITY": "error",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
}  # fmt: skip


def start(
    command: list[str], cwd: Path, environment: Mapping[str, str], output: int = 1, *, forked: bool = True
) -> "Process | subprocess.Popen[bytes]":
    """Start `[sys.executable, "-m", module, ...]` as a fork or by itself; stdout and stderr go to `output`."""
    if forked:
        return Process(command, cwd, environment, output)
    return subprocess.Popen(command, cwd=cwd, env=environment, stdout=output, stderr=output)


class Process:
    """A fork made by start(), with the methods of subprocess.Popen."""

    def __init__(self, command: list[str], cwd: Path, environment: Mapping[str, str], output: int = 1) -> None:
        self.args = command
        given = (command, str(cwd), dict(environment), _Descriptor(output))
        self._process = _server().Process(target=_program, args=given, daemon=True)
        self._process.start()
        self.pid: int = self._process.pid

    @property
    def returncode(self) -> int | None:
        code: int | None = self._process.exitcode
        return code

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        code = self.returncode
        if code is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


@functools.cache
def _server() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(LIBRARIES)
    before = dict(os.environ)
    os.environ.update(SETTINGS)
    try:
        forkserver.ensure_running()
    finally:
        os.environ.clear()
        os.environ.update(before)
    return context


class _Descriptor:
    """An open file's number, which differs in the process that receives it."""

    def __init__(self, number: int) -> None:
        self._number = number

    def __reduce__(self) -> tuple[Callable[[Any], int], tuple[Any]]:
        return _detached, (reduction.DupFd(self._number),)


def _detached(duplicate: Any) -> int:
    return int(duplicate.detach())


# -- in the new process ------------------------------------------------------------------------------------------------


def _program(command: list[str], cwd: str, environment: dict[str, str], output: int) -> NoReturn:
    vars(multiprocessing.current_process())["_config"].pop("daemon", None)  # it may have children of its own
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    vars(subprocess)["_USE_POSIX_SPAWN"] = False
    vars(subprocess)["_fork_exec"] = functools.partial(_fork, vars(subprocess)["_fork_exec"])
    _become(command)


def _become(command: list[str]) -> NoReturn:
    """Run the command's program to its end."""
    gc.freeze()  # earlier objects are never collected: that would close descriptors that belong to something else now
    sys.orig_argv, sys.argv = list(command), [sys.executable, *command[command.index("-m") + 2 :]]
    for name, number in (("stdout", 1), ("stderr", 2)):
        at_once = number == 2 or "PYTHONUNBUFFERED" in os.environ
        setattr(sys, name, open(number, "w", 1 if at_once else -1, closefd=False, errors="backslashreplace"))  # noqa: SIM115
    for module in [name for name in sys.modules if name.partition(".")[0] == "trainer"]:
        del sys.modules[module]  # the process that this one was forked from has imported it
    code = 0
    try:
        runpy.run_module(command[command.index("-m") + 1], run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        code = 1
    vars(threading)["_shutdown"]()  # the interpreter does the same: executors end, then other threads are waited for
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def _fork(really: Callable[..., int], args: list[Any], executables: Any, close: bool, keep: Any, *others: Any) -> int:
    """Replace _posixsubprocess.fork_exec: fork Python's programs, and start others as usual.

    It supports the options that trainer/ uses: no preexec_fn, no process group, no other user.
    """
    if args[0] != sys.executable or "-m" not in args:
        return really(args, executables, close, keep, *others)
    cwd, environment, reading, _, _, writing, _, errors, _, failed, _, new_session = others[:12]
    child = os.fork()
    if child:
        return child
    try:
        for descriptor, standard in ((reading, 0), (writing, 1), (errors, 2)):
            if descriptor >= 0:
                os.dup2(descriptor, standard)
        for descriptor in list(_open_descriptors()):
            kept = descriptor in keep or (not close and os.get_inheritable(descriptor))
            if descriptor > 2 and descriptor != failed and not kept:
                os.close(descriptor)
        for number in signal.valid_signals():
            if callable(signal.getsignal(number)):
                signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        signal.set_wakeup_fd(-1)
        if new_session:
            os.setsid()
        if cwd is not None:
            os.chdir(cwd)
        if environment is not None:
            os.environ.clear()
            for name, _, value in (os.fsdecode(entry).partition("=") for entry in environment):
                os.environ[name] = value
        os.close(failed)  # only now does Popen return, and signals may be sent
        _become([os.fsdecode(word) for word in args])
    except BaseException:
        traceback.print_exc()
    os._exit(255)


def _open_descriptors() -> Iterator[int]:
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208
        with contextlib.suppress(OSError):
            os.fstat(int(name))
            yield int(name)

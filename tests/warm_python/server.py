"""The server: it imports libraries once and forks a process for each client.

`python -I server.py SOCKET PYTHON LIBRARY...`, where PYTHON is the sys.executable of the forked processes. It ends,
with all processes that it forked, when its stdin ends. Its environment has a variable ROOM, as long as any environment
of a process.
"""

import atexit
import contextlib
import fcntl
import gc
import importlib
import io
import marshal
import os
import runpy
import selectors
import signal
import socket
import sys
import threading
import traceback
from pathlib import Path
from typing import NoReturn

Request = tuple[int, int, list[str], str, dict[str, str], list[int]]  # see client.py


class Server:
    """The server, with one thread: the processes that it forks could otherwise wait for locks that nobody holds."""

    def __init__(self, path: str, libraries: list[str]) -> None:
        self.base = list(sys.path)
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(path)
        self.listener.listen(128)
        print("listening", flush=True)
        for name in libraries:  # a client that comes early waits
            hasattr(importlib.import_module(name), "one")  # pulumi_gcp's modules are lazy until an attribute is read
        if len(os.listdir("/proc/self/task")) > 1:  # noqa: PTH208
            sys.exit(f"tests/warm_python: one of {', '.join(libraries)} starts a thread when it is imported")
        gc.collect()
        gc.freeze()  # no process ever collects these objects, or closes a descriptor that was one of ours
        self.clients: dict[int, socket.socket] = {}  # the key is the process that was forked for the client
        self.waking, self.woken = socket.socketpair()
        for end in (self.waking, self.woken):
            end.setblocking(False)
        signal.set_wakeup_fd(self.woken.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        # These signals are for the tests, which end the server by closing its stdin.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        self.selector = selectors.DefaultSelector()
        for file in (self.listener, self.waking, sys.stdin):
            self.selector.register(file, selectors.EVENT_READ)

    def serve(self) -> None:
        while True:
            for key, _ in self.selector.select():
                if key.fileobj is sys.stdin:
                    return
                if key.fileobj is self.listener:
                    self.accept()
                elif key.fileobj is self.waking:
                    with contextlib.suppress(BlockingIOError):
                        self.waking.recv(4096)
                    self.reap()
                elif self.clients.get(key.data) is key.fileobj:
                    kill(key.data)  # the client was killed, as it sends nothing by itself
                    self.selector.unregister(key.fileobj)

    def accept(self) -> None:
        client, _ = self.listener.accept()
        client.settimeout(30)
        try:
            head, descriptors, _, _ = socket.recv_fds(client, 4, 250)
            size, asked = int.from_bytes(head, "big"), b""
            while len(asked) < size:
                if not (part := client.recv(size - len(asked))):
                    raise ConnectionResetError
                asked += part
        except OSError:  # it was killed already
            client.close()
            return
        child = os.fork()
        if not child:
            become(marshal.loads(asked), descriptors, self.base)
        for descriptor in descriptors:
            os.close(descriptor)
        self.clients[child] = client
        self.selector.register(client, selectors.EVENT_READ, child)
        answer(client, child)

    def reap(self) -> None:
        while True:
            try:
                child, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not child:
                return
            client = self.clients.pop(child)
            answer(client, os.waitstatus_to_exitcode(status))
            with contextlib.suppress(KeyError):
                self.selector.unregister(client)
            client.close()

    def end(self) -> None:
        for child in self.clients:
            kill(child)


def answer(client: socket.socket, number: int) -> None:
    with contextlib.suppress(OSError):
        client.sendall(number.to_bytes(4, "big", signed=True))


def kill(child: int) -> None:
    """Kill the process and its children, except those that left its session."""
    for end in (os.kill, os.killpg):  # it may not have its group yet
        with contextlib.suppress(ProcessLookupError):
            end(child, signal.SIGKILL)


def become(request: Request, descriptors: list[int], base: list[str]) -> NoReturn:
    """Run the client's program to its end, in the forked process."""
    code = 1
    try:
        code = run(request, descriptors, base)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def run(request: Request, descriptors: list[int], base: list[str]) -> int:
    client, niceness, arguments, cwd, environment, inherited = request
    os.setsid()
    signal.set_wakeup_fd(-1)
    beyond = max([*inherited, *descriptors]) + 1
    moved = [fcntl.fcntl(number, fcntl.F_DUPFD, beyond) for number in descriptors]
    os.closerange(0, beyond)
    for number, descriptor in zip(inherited, moved, strict=True):
        os.dup2(descriptor, number)
    os.closerange(beyond, max(moved) + 1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.nice(max(niceness - os.nice(0), 0))
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    show(environment)
    os.getppid = lambda: parent_of(client)

    flags, rest = [], list(arguments)
    while rest[0] != "-m" and rest[0].startswith("-"):
        flags.append(rest.pop(0))
    at_once = "-u" in flags or bool(environment.get("PYTHONUNBUFFERED"))
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    for name, number, errors in (("stdout", 1, "strict"), ("stderr", 2, "backslashreplace")):
        raw = open(number, "wb", 0 if at_once else -1, closefd=False)  # noqa: SIM115
        line_by_line = number == 2 and not at_once
        setattr(sys, name, io.TextIOWrapper(raw, "utf-8", errors, None, line_by_line, write_through=at_once))
    sys.dont_write_bytecode = bool(environment.get("PYTHONDONTWRITEBYTECODE"))
    sys.orig_argv = [sys.executable, *arguments]
    found: list[str] = []
    if "-I" not in flags:
        folder = cwd if rest[0] == "-m" else str(Path(os.path.realpath(rest[0])).parent)
        found = [folder, *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    sys.path[:] = [*found, *base]
    return ended(rest)


def ended(rest: list[str]) -> int:
    """Run `-m MODULE ARGUMENT...` or `FILE ARGUMENT...`; return the exit status."""
    code, interrupted = 0, False
    try:
        if rest[0] == "-m":
            sys.argv = rest[1:]
            runpy.run_module(rest[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = rest
            runpy.run_path(rest[0], run_name="__main__")
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException as error:
        traceback.print_exc()
        code, interrupted = 1, isinstance(error, KeyboardInterrupt)
    # The interpreter does the same: executors end, other threads are waited for, then registered functions are called.
    vars(threading)["_shutdown"]()
    vars(atexit)["_run_exitfuncs"]()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    if interrupted:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    return code & 0xFF


def show(environment: dict[str, str]) -> None:
    """Write the environment where the kernel looks for it: others read a process's owner in /proc/PID/environ."""
    start, end = (int(field) for field in Path("/proc/self/stat").read_text().rpartition(")")[2].split()[47:49])
    text = b"".join(os.fsencode(f"{name}={value}") + b"\0" for name, value in environment.items())
    if len(text) > end - start:
        raise ValueError(f"an environment of {len(text)} bytes, where the server has room for {end - start}")
    with Path("/proc/self/mem").open("r+b", buffering=0) as memory:
        memory.seek(start)
        memory.write(text.ljust(end - start, b"\0"))


def parent_of(pid: int) -> int:
    """Return the parent of a client. The forked process has the server as its parent, like all others."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 1


def main(arguments: list[str]) -> NoReturn:
    sys.executable = arguments[1]
    server = Server(arguments[0], arguments[2:])
    try:
        server.serve()
    finally:
        server.end()
        os._exit(0)  # libraries must not write anything at the exit


if __name__ == "__main__":
    main(sys.argv[1:])

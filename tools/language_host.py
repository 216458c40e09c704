# ruff: noqa: N802  (the calls are named by language.proto)
"""Pulumi's Python language host, in Python: how the `pulumi` that get_pulumi.py builds from Go modules runs programs.

The official host comes with the official CLI; its Go module cannot be had where release downloads cannot. This one
serves language.proto with the classes that the Pulumi SDK ships. `pulumi` starts it with its own address as the
argument and reads the port from the first line of stdout. The same file, started with `run` and the settings, is the
process in which the user's program runs.
"""

import asyncio
import gc
import importlib.metadata
import importlib.util
import json
import logging
import os
import re
import runpy
import signal
import subprocess
import sys
import traceback
from base64 import b64decode
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

try:
    gc.disable()  # until all is imported: nothing of it is garbage
    # The host needs pulumi's messages alone, and `pulumi up` waits for three hosts. The code of the two packages above
    # the messages would double each start, so it does not run here. In a program's process all of pulumi runs.
    if __name__ == "__main__" and sys.argv[1:2] != ["run"]:
        for package in ("pulumi", "pulumi.runtime"):
            if spec := importlib.util.find_spec(package):
                sys.modules[package] = importlib.util.module_from_spec(spec)
    import grpc  # type: ignore[import-untyped]
    import pulumi
    from google.protobuf import empty_pb2  # type: ignore[import-untyped]
    from pulumi.runtime.proto import language_pb2 as lang
    from pulumi.runtime.proto import language_pb2_grpc, plugin_pb2
except ImportError as error:
    print(
        f"Pulumi's Python packages are not usable in {sys.executable} ({error}): run `make setup` in the checkout, "
        "then `. tools/activate`",
        file=sys.stderr,
    )
    sys.exit(1)
gc.freeze()
gc.enable()

# A program that has shown its own error ends with this status, so that the engine does not add a second message.
ALREADY_SHOWN = 32
_T = TypeVar("_T")


class BadEnvironmentError(Exception):
    """The project names a virtual environment that cannot be used; the message says which."""


def python_of(info: lang.ProgramInfo) -> str:
    """Return the python that runs the project's programs: that of the `virtualenv` option, else the one we run in."""
    if not (name := info.options.fields["virtualenv"].string_value):
        return os.environ.get("PULUMI_PYTHON_CMD") or sys.executable
    python = Path(info.root_directory, name, "bin", "python")
    if not python.exists():
        raise BadEnvironmentError(
            f"Pulumi.yaml: runtime.options.virtualenv is {name!r}, but {python} does not exist: run `make setup`"
        )
    return str(python)


def environment_of(python: str, **more: str) -> dict[str, str]:
    """Our environment with the virtual environment of `python`, if it is in one, made the active one."""
    environment = {**os.environ, **more}
    home = Path(python).parent.parent
    if (home / "pyvenv.cfg").exists():
        environment["VIRTUAL_ENV"] = str(home)
        environment["PATH"] = f"{home / 'bin'}{os.pathsep}{environment.get('PATH', os.defpath)}"
        environment.pop("PYTHONHOME", None)
    return environment


def plugins() -> list[dict[str, Any]]:
    """Return the Pulumi packages of the python that runs this: those with a pulumi-plugin.json."""
    found = []
    for folder in sys.path:
        for file in Path(folder).glob("*/pulumi-plugin.json"):
            plugin = json.loads(file.read_text(encoding="utf-8"))
            for dist in importlib.metadata.distributions(name=file.parent.name, path=[folder]):
                if plugin.get("resource"):
                    found.append({"name": dist.name.removeprefix("pulumi_"), "version": dist.version, **plugin})
    return found


def distributions() -> list[dict[str, Any]]:
    """Return all distributions of the python that runs this, each with the names of those that it requires."""
    found = []
    for dist in importlib.metadata.distributions():
        requires = [re.split(r"[^\w.-]", line, maxsplit=1)[0] for line in dist.requires or [] if "extra ==" not in line]
        found.append({"name": dist.name, "version": dist.version, "requires": requires})
    return found


QUESTIONS = {"plugins": plugins, "distributions": distributions}


def ask(python: str, question: str) -> list[dict[str, Any]]:
    """Return the answer of that python to one of QUESTIONS. Raise BadEnvironmentError."""
    # Compare folders with links resolved: a project's .venv may be a link. The python in it always is.
    theirs, ours = [Path(path).parent.resolve() / Path(path).name for path in (python, sys.executable)]
    if theirs == ours:
        return QUESTIONS[question]()
    answer = subprocess.run([python, __file__, question], stdout=subprocess.PIPE, text=True, check=False)
    if answer.returncode:
        raise BadEnvironmentError(f"{python} cannot list its packages: run `make setup`")
    listed: list[dict[str, Any]] = json.loads(answer.stdout)
    return listed


def run_program(settings: dict[str, Any], program: str) -> int:
    """Run a Pulumi program in this process, the current folder being its own. The exit status."""
    # An interrupted program must not look like one that ended well: the engine would delete what it did not declare.
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # after an error futures stay unread; that is no news
    sys.path.pop(0)  # the folder of this file
    sys.argv = [program]
    pulumi.runtime.set_all_config(pulumi.runtime.get_config_env(), pulumi.runtime.get_config_secret_keys_env())
    pulumi.runtime.configure(pulumi.runtime.Settings(**settings))
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    executor = ThreadPoolExecutor(max_workers=4 * max(settings["parallel"], 1))  # as the official host does
    loop.set_default_executor(executor)

    def program_body() -> None:
        runpy.run_path(program, run_name="__main__")

    try:
        loop.run_until_complete(pulumi.runtime.run_in_stack(program_body))
        return 0
    except pulumi.RunError as error:
        pulumi.log.error(str(error))
        return ALREADY_SHOWN
    except Exception:
        pulumi.log.error(f"Program failed with an unhandled exception:\n{program_traceback(program)}")
        return ALREADY_SHOWN
    finally:
        executor.shutdown(wait=True)
        loop.close()
        gc.freeze()  # or Python would search all modules for garbage at its end: 0.1 s


def program_traceback(program: str) -> str:
    """Return the current exception's traceback, from the user's program on: without our and the SDK's frames."""
    main = os.path.realpath(Path(program, "__main__.py") if Path(program).is_dir() else program)
    files = [os.path.realpath(frame.filename) for frame in traceback.extract_tb(sys.exc_info()[2])]
    return traceback.format_exc(limit=files.index(main) - len(files) if main in files else None)


class LanguageHost(language_pb2_grpc.LanguageRuntimeServicer):
    """The calls of language.proto that running programs and plugins needs; the CLI does without the others."""

    def __init__(self, engine: str) -> None:
        self.engine = engine
        self.children: set[subprocess.Popen[bytes]] = set()

    def Handshake(self, request: Any, context: Any) -> Any:
        return lang.LanguageHandshakeResponse()

    def GetPluginInfo(self, request: Any, context: Any) -> Any:
        return plugin_pb2.PluginInfo(version=importlib.metadata.version("pulumi"))

    def Cancel(self, request: Any, context: Any) -> Any:
        self.stop_children()
        return empty_pb2.Empty()

    def GetRequiredPackages(self, request: Any, context: Any) -> Any:
        packages = []
        for plugin in self._answer(context, lambda: ask(python_of(request.info), "plugins")):
            package = plugin_pb2.PackageDependency(
                name=plugin["name"], kind="resource", version=plugin["version"], server=plugin.get("server", "")
            )
            if parameters := plugin.get("parameterization"):
                package.parameterization.name = parameters["name"]
                package.parameterization.version = parameters["version"]
                package.parameterization.value = b64decode(parameters["value"])
            packages.append(package)
        return lang.GetRequiredPackagesResponse(packages=packages)

    def Run(self, request: Any, context: Any) -> Any:
        try:
            python = python_of(request.info)
        except BadEnvironmentError as error:
            return lang.RunResponse(error=str(error))
        settings = {
            "monitor": request.monitor_address,
            "engine": self.engine,
            "project": request.project,
            "stack": request.stack,
            "parallel": request.parallel,
            "dry_run": request.dryRun,
            "organization": request.organization,
            "root_directory": request.info.root_directory,
        }
        program = str(Path(request.info.program_directory, request.info.entry_point))
        environment = environment_of(
            python,
            PULUMI_CONFIG=json.dumps(dict(request.config)),
            PULUMI_CONFIG_SECRET_KEYS=json.dumps(list(request.configSecretKeys)),
        )
        command = [python, "-u", __file__, "run", json.dumps(settings), program]
        status = self._start(command, cwd=request.pwd, env=environment).wait()
        if status == ALREADY_SHOWN:
            return lang.RunResponse(bail=True)
        return lang.RunResponse(error=f"the program ended with status {status}" if status else "")

    def RunPlugin(self, request: Any, context: Any) -> Iterator[Any]:
        python = self._answer(context, lambda: python_of(request.info))
        folder = request.info.program_directory
        if request.kind == "analyzer":  # a policy pack
            command, cwd = [python, "-u", "-m", "pulumi.policy", *request.args, folder], folder
        else:
            command, cwd = [python, "-u", folder, *request.args], request.pwd
        environment = environment_of(python, **dict(item.split("=", 1) for item in request.env))
        child = self._start(command, cwd=cwd, env=environment, stdout=subprocess.PIPE)
        context.add_callback(child.terminate)
        assert child.stdout
        yield from (lang.RunPluginResponse(stdout=line) for line in child.stdout)
        yield lang.RunPluginResponse(exitcode=child.wait())

    def InstallDependencies(self, request: Any, context: Any) -> Iterator[Any]:
        yield lang.InstallDependenciesResponse(stdout=b"Python packages: `make setup` installs them\n")

    def About(self, request: Any, context: Any) -> Any:
        return lang.AboutResponse(executable=sys.executable, version=sys.version.split()[0])

    def GetProgramDependencies(self, request: Any, context: Any) -> Any:
        listed = self._answer(context, lambda: ask(python_of(request.info), "distributions"))
        if not request.transitiveDependencies:
            required = {plain(name) for dist in listed for name in dist["requires"]}
            listed = [dist for dist in listed if plain(dist["name"]) not in required]
        return lang.GetProgramDependenciesResponse(
            dependencies=[lang.DependencyInfo(name=dist["name"], version=dist["version"]) for dist in listed]
        )

    def stop_children(self) -> None:
        """Interrupt the programs and plugins that still run."""
        for child in list(self.children):
            child.send_signal(signal.SIGINT)

    def _start(self, command: list[str], **options: Any) -> "subprocess.Popen[bytes]":
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, **options)
        self.children = {other for other in self.children if other.poll() is None} | {child}
        return child

    def _answer(self, context: Any, question: Callable[[], _T]) -> _T:
        try:
            return question()
        except BadEnvironmentError as error:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))
            raise  # abort has raised already


def plain(name: str) -> str:
    """Return a distribution's name in the form in which two spellings compare equal."""
    return re.sub(r"[-_.]+", "-", name).lower()


def serve(engine: str) -> None:
    """Serve `pulumi` until it interrupts us or is gone."""
    host = LanguageHost(engine)

    def stop(*_: object) -> None:
        host.stop_children()
        os._exit(0)

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    server = grpc.server(ThreadPoolExecutor(16), options=[("grpc.max_receive_message_length", 400 << 20)])
    language_pb2_grpc.add_LanguageRuntimeServicer_to_server(host, server)
    port = server.add_insecure_port("127.0.0.1:0")
    parent = os.getppid()
    server.start()
    print(port, flush=True)
    while os.getppid() == parent:  # a pulumi that was killed interrupts nobody
        server.wait_for_termination(timeout=2)
    stop()


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["run", settings, program]:
            sys.exit(run_program(json.loads(settings), program))
        case [question] if question in QUESTIONS:
            print(json.dumps(QUESTIONS[question]()))
        case [*_, engine] if ":" in engine:
            serve(engine)
        case _:
            sys.exit(
                "pulumi-language-python is started by `pulumi`, with the address of its engine as the last argument"
            )

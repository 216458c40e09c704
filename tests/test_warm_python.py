"""tests/warm_python: a forked program behaves like a started one."""

import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PROGRAM = """
import json, os, signal, sys, time
import beside
match sys.argv[1]:
    case "tell":
        print(json.dumps({
            "argv": sys.argv, "name": __name__, "cwd": os.getcwd(), "path": sys.path[0], "beside": beside.VALUE,
            "environment": dict(os.environ), "parent": os.getppid(), "stdin": sys.stdin.read(),
            "seen": open("/proc/self/environ").read().split(chr(0))[:-1], "nice": os.nice(0),
        }))
    case "exit":
        sys.exit(json.loads(sys.argv[2]))
    case "raise":
        raise ValueError("a mistake")
    case "handle":
        signal.signal(signal.SIGINT, lambda *_: os._exit(130))
        print(os.getpid(), flush=True)
        time.sleep(600)
    case "wait":
        print(os.getpid(), flush=True)
        time.sleep(600)
    case "write":
        sys.stdout.buffer.write(b"1234\\n")
        time.sleep(600)
    case "close":
        os.write(int(sys.argv[2]), b"x")
        os.close(int(sys.argv[2]))
        time.sleep(600)
"""


@pytest.fixture(params=["started", "forked"])
def python(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "beside.py").write_text("VALUE = 1\n")
    if request.param == "started":
        return sys.executable
    return str(request.getfixturevalue("forked_pulumi") / "bin" / "python")


def run(python: str, folder: Path, *arguments: str, **options: Any) -> "subprocess.CompletedProcess[str]":
    command = [python, "-u", str(folder / "program.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, **options)


def start(python: str, folder: Path, *arguments: str, **options: Any) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([python, "-u", str(folder / "program.py"), *arguments], stdout=subprocess.PIPE, **options)


def told(python: str, folder: Path) -> dict[str, Any]:
    environment = {"PATH": os.environ["PATH"], "WHO": "a\nb=c"}
    done = run(python, folder, "tell", "a b", "", input="hello", cwd=folder, env=environment)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_program_gets_its_arguments_environment_and_input(python: str, tmp_path: Path) -> None:
    found = told(python, tmp_path)
    environment = {name: value for name, value in found.pop("environment").items() if name not in ("LC_CTYPE", "PWD")}
    assert environment == {"PATH": os.environ["PATH"], "WHO": "a\nb=c"}
    assert {"WHO=a\nb=c", f"PATH={os.environ['PATH']}"} <= set(found.pop("seen"))
    assert found == {
        "argv": [str(tmp_path / "program.py"), "tell", "a b", ""], "name": "__main__", "cwd": str(tmp_path),
        "path": str(tmp_path), "beside": 1, "parent": os.getpid(), "stdin": "hello", "nice": os.nice(0),
    }  # fmt: skip
    (tmp_path / "beside.py").write_text("VALUE = 22\n")
    assert told(python, tmp_path)["beside"] == 22


@pytest.mark.parametrize(("word", "status", "said"), [("3", 3, ""), ("null", 0, ""), ('"sorry"', 1, "sorry\n")])
def test_program_exits_with_its_status(python: str, tmp_path: Path, word: str, status: int, said: str) -> None:
    done = run(python, tmp_path, "exit", word)
    assert (done.returncode, done.stdout, done.stderr) == (status, "", said)


def test_program_of_any_form_runs_and_an_exception_is_printed(python: str, tmp_path: Path) -> None:
    done = run(python, tmp_path, "raise")
    assert done.returncode == 1
    assert done.stderr.endswith('raise ValueError("a mistake")\nValueError: a mistake\n')
    for form in (["-m", "beside"], ["-c", "import beside"], [str(tmp_path)]):
        (tmp_path / "__main__.py").write_text("import beside\n")
        assert subprocess.run([python, *form], cwd=tmp_path, check=False).returncode == 0
    isolated = subprocess.run([python, "-I", "program.py", "tell"], cwd=tmp_path, capture_output=True, check=False)
    assert b"No module named 'beside'" in isolated.stderr


def test_program_gets_signals(python: str, tmp_path: Path) -> None:
    for word, number, status in (
        ("handle", signal.SIGINT, 130), ("wait", signal.SIGINT, -signal.SIGINT), ("wait", signal.SIGTERM, -15),
    ):  # fmt: skip
        with start(python, tmp_path, word, stderr=subprocess.DEVNULL) as program:
            assert program.stdout
            assert program.stdout.readline()
            program.send_signal(number)
            assert program.wait(timeout=60) == status


def test_killing_the_started_process_kills_the_program(python: str, tmp_path: Path) -> None:
    with start(python, tmp_path, "wait") as program:
        assert program.stdout
        handle = os.pidfd_open(int(program.stdout.readline()))
        program.kill()
        assert program.wait(timeout=60) == -signal.SIGKILL
        assert select.select([handle], [], [], 60)[0]  # it is readable when the process has ended
        os.close(handle)


def test_program_writes_output_at_once_and_inherits_descriptors(python: str, tmp_path: Path) -> None:
    # Pulumi's provider of dynamic resources prints its port like this.
    with start(python, tmp_path, "write") as program:
        assert program.stdout
        assert program.stdout.readline() == b"1234\n"
        program.kill()
    reading, writing = os.pipe()
    with start(python, tmp_path, "close", str(writing), pass_fds=[writing]) as program:
        os.close(writing)
        assert os.read(reading, 10) == b"x"
        assert os.read(reading, 10) == b""  # the program closed it, and nobody else has it
        program.kill()
    os.close(reading)

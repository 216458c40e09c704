"""The content of an image of the trainer, as its own container sees it."""

import hashlib
from pathlib import Path

from tests.image.engine import Engine
from trainer.contract.identity import code_files

UID = 10001
IMPORTS = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
    print(name)
"""

# Triton's own build of its own launcher. It is not loaded, as it needs the driver of a GPU.
TRITON = """
from triton.backends.nvidia import driver
from triton.runtime.build import compile_so_from_file
print(compile_so_from_file(driver.dirname + "/driver.c", "cuda_utils", include_dirs=driver.include_dirs))
"""


def copied(folder: Path) -> dict[str, bytes]:
    """Return name and content of each file of a context that belongs into the image."""
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in code_files(folder)}
    return {name: content for name, content in files.items() if name not in ("Dockerfile", ".dockerignore")}


def assert_holds_the_code_and_nothing_else(engine: Engine, image: str, source: Path) -> None:
    def inside(program: str, *arguments: str) -> str:
        return engine.docker("run", "--rm", "--network", "none", "--entrypoint", program, image, *arguments)

    expected = {f"/app/trainer/{name}": hashlib.sha256(code).hexdigest() for name, code in copied(source).items()}
    lines = inside("find", "/app", "-not", "-type", "d", "-exec", "sha256sum", "{}", "+").splitlines()
    assert {path: digest for digest, path in map(str.split, lines)} == expected
    # The trainer cannot change its own code.
    assert inside("sh", "-c", "touch /app/trainer/x || id -u").endswith(str(UID))
    variables = engine.docker("inspect", "--format", "{{range .Config.Env}}{{println .}}{{end}}", image).split()
    assert {variable.partition("=")[0] for variable in variables} == {"PATH", "PYTHONUNBUFFERED"}


def assert_every_module_imports(engine: Engine, image: str, source: Path, *options: str) -> None:
    modules = [name.removesuffix(".py").replace("/", ".") for name in copied(source) if name.endswith(".py")]
    names = [f"trainer.{name}".removesuffix(".__init__") for name in modules if not name.endswith("__main__")]
    run = ("run", "--rm", "--network", "none", *options)
    printed = engine.docker(*run, "--entrypoint", "python3", image, "-c", IMPORTS, *names)
    assert printed.split() == [name.replace("trainer.__init__", "trainer") for name in names]
    assert "--bucket" in engine.docker(*run, image, "--help")


def assert_triton_has_its_compiler(engine: Engine, image: str) -> None:
    run = ("run", "--rm", "--network", "none", "--entrypoint", "python3", image, "-c", TRITON)
    assert "/cuda_utils." in engine.docker(*run)

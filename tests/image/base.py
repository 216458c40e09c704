"""A base for the trainer's image, made in seconds of this machine's own Python: nothing is pulled from a registry."""

import io
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

import torch

from tests.image.engine import Engine, missing

PROGRAMS = ("sh", "find", "sha256sum", "id", "touch", "useradd", "rm", "tar")  # of trainer/Dockerfile and the tests
# The base's apt-get: it unpacks what ARCHIVES has, and installs nothing where there are no archives.
APT_GET = """#!/bin/sh
[ -d /archives ] || exit 0
for word; do
    case $word in
    -* | update | install) ;;
    *) tar --extract --skip-old-files --directory=/ --file="/archives/$word.tar" || exit 100 ;;
    esac
done
"""
COMPILER = "g++"  # Debian's package that trainer/Dockerfile installs
NOT_PACKED = re.compile(
    r"/usr/share/.*|.*/(lto1|lto-dump|[^/]*-lto-dump)[^/]*"
)  # documents, and link-time optimization
# Parts of the standard library that nothing here needs, the packages in it, and Debian's mark of a Python into which
# pip may not install, which python:* images do not have.
LEFT_OUT = re.compile(
    r".*/(test|idlelib|lib2to3|tkinter|turtledemo|ensurepip|config-[^/]*|[^/]*\.opt-\d\.pyc|site-packages|dist-packages"
    r"|EXTERNALLY-MANAGED)"
)
INSTALLED = Path(sysconfig.get_path("purelib"))
PACKAGES = Path("/packages")
MOUNT = f"--volume={INSTALLED}:{PACKAGES}:ro"
BUNDLE = Path("/etc/ssl/certs/ca-certificates.crt")
# The settings that pip may need to find packages where this machine finds them.
PIP_KEYS = ("default-timeout", "extra-index-url", "index-url", "proxy", "timeout", "trusted-host")


def bare(engine: Engine) -> str:
    """Return a base that has Python, pip, this machine's certificates and settings of pip, and the compiler's package.

    The package and all that it needs are this machine's files, without what Debian only recommends.
    """
    return _base(engine, "gpt2-training-test-base", furnished=False)


def furnished(engine: Engine) -> str:
    """Return a base on which pip finds all requirements installed, so that the image is built in seconds.

    It has only their metadata. For their code, `docker run` needs the option MOUNT.
    """
    return _base(engine, "gpt2-training-test-furnished-base", furnished=True)


def _base(engine: Engine, tag: str, *, furnished: bool) -> str:
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(Path(folder, "base.tar"), "w", dereference=True) as tar:
            site = _add_python(tar)
            _write(tar, Path("/etc/nsswitch.conf"), "hosts: files dns\n")
            _write(tar, Path("/etc/pip.conf"), _pip_settings())
            _write(tar, Path("/usr/bin/apt-get"), APT_GET, mode=0o755)
            _copy(tar, Path(os.environ.get("SSL_CERT_FILE", BUNDLE)), BUNDLE)
            if furnished:
                _write(tar, site / "packages.pth", f"{PACKAGES}\n")
                for path in sorted(INSTALLED.glob("*.dist-info/METADATA")):
                    _copy(tar, path, PACKAGES / path.parent.name / path.name)
            else:
                _pack(COMPILER, Path(folder, "package"))
                _copy(tar, Path(folder, "package"), Path("/archives", f"{COMPILER}.tar"))
        Path(folder, "Dockerfile").write_text("FROM scratch\nADD base.tar /\n")
        engine.build(Path(folder), tag)
    return tag


def _add_python(tar: tarfile.TarFile) -> Path:
    """Add Python under the paths that it has here, pip, and PROGRAMS.

    Return the folder in which Python looks for packages.
    """
    python, library = Path(sys.executable).resolve(), Path(sysconfig.get_path("stdlib"))
    programs = {name: shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") for name in PROGRAMS}
    files = {Path("/usr/bin", name): Path(path) for name, path in programs.items() if path}
    files |= {Path("/bin/sh"): files[Path("/usr/bin/sh")], python: python}
    # PyTorch's own files name the libraries that wheels expect of a system.
    torch_files = Path(torch.__file__).parent.glob("lib/*.so")
    found = _libraries([*files.values(), *library.glob("lib-dynload/*.so"), *torch_files])
    files |= {path: path for path in sorted(found) if not path.is_relative_to(INSTALLED.resolve())}
    # pip is this environment's, as Debian's Python has none of its own. It is not imported: setuptools would then leave
    # distutils to the standard library, and torch.compile would fail in all later tests of this process.
    command = [python, "-I", "-c", "import site; print(site.getsitepackages()[0])"]
    site = Path(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip())
    folders = [INSTALLED / "pip", INSTALLED / f"pip-{metadata.version('pip')}.dist-info"]
    headers = Path(sysconfig.get_path("include"))
    files |= {library: library, headers: headers, **{site / folder.name: folder for folder in folders}}
    for name, source in files.items():
        _copy(tar, source, name)
    python3 = tarfile.TarInfo("usr/local/bin/python3")
    python3.type, python3.linkname = tarfile.SYMTYPE, str(python)
    tar.addfile(python3)
    temporary = tarfile.TarInfo("tmp")
    temporary.type, temporary.mode = tarfile.DIRTYPE, 0o1777
    tar.addfile(temporary)
    return site


def _libraries(files: Iterable[Path]) -> set[Path]:
    """Return the shared libraries that the loader finds for these files, itself included."""
    said = subprocess.run(["ldd", *files], capture_output=True, text=True).stdout
    return {Path(path) for path in re.findall(r"(?:=> |^\s+)(/\S+) \(0x", said, re.MULTILINE)}


def _copy(tar: tarfile.TarFile, source: Path, name: Path) -> None:
    """Add a file, or a folder with its content, readable for everyone."""

    def plain(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
        if LEFT_OUT.fullmatch("/" + entry.name.removeprefix(str(name).lstrip("/"))):
            return None
        entry.mode |= 0o555 if entry.isdir() else 0o444
        return entry.replace(uid=0, gid=0, uname="", gname="", deep=False)

    tar.add(source, name, filter=plain)


def _write(tar: tarfile.TarFile, name: Path, content: str, mode: int = 0o644) -> None:
    entry = tarfile.TarInfo(str(name).lstrip("/"))
    entry.size, entry.mode = len(content.encode()), mode
    tar.addfile(entry, io.BytesIO(content.encode()))


def _pack(package: str, archive: Path) -> None:
    """Write the files of a package of Debian, and of all that it needs, as this machine has them."""
    if shutil.which("dpkg-query") is None or shutil.which(package) is None:
        missing(f"there is no package {package} here", package)
    command = ["dpkg-query", "--listfiles", *_closure(package)]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    files = sorted({line for line in listed if line.startswith("/") and not NOT_PACKED.fullmatch(line)})
    with tarfile.open(archive, "w", dereference=True) as tar:
        for file in files:
            if Path(file).is_file():
                _copy(tar, Path(file), Path(file))


def _closure(package: str) -> list[str]:
    """Return a package and the installed ones that it needs; of alternatives the first that is installed."""
    command = ["dpkg-query", "--show", "--showformat", "${Package}\t${Provides}\t${Pre-Depends}, ${Depends}\n"]
    needs: dict[str, list[list[str]]] = {}
    providers: dict[str, str] = {}
    for line in subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines():
        name, provided, needed = line.split("\t")
        needs[name] = [_names(alternatives, "|") for alternatives in needed.split(",") if alternatives.strip()]
        providers |= dict.fromkeys(_names(provided, ","), name)
    found, left = set[str](), [package]
    while left:
        name = left.pop()
        if name in found:
            continue
        found.add(name)
        for alternatives in needs[name]:
            installed = [
                known for other in alternatives if (known := other if other in needs else providers.get(other))
            ]
            left += installed[:1]
    return sorted(found)


def _names(text: str, separator: str) -> list[str]:
    """Return the names of packages in one of dpkg's fields, without versions and architectures."""
    return [re.split(r"[\s:(]", part.strip(), maxsplit=1)[0] for part in text.split(separator) if part.strip()]


def _pip_settings() -> str:
    """Return pip's settings on this machine, from its files and its environment, as one file."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = dict(re.findall(r"^(?:global|install|:env:)\.([\w-]+)='(.*)'$", listed, re.MULTILINE))
    lines = [f"{key} = {found[key]}" for key in PIP_KEYS if key in found]
    return "\n".join(["[global]", f"cert = {BUNDLE}", *lines, ""])

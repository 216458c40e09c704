"""The image's files are the same for code_hash, for Cloud Build's package and for each of Docker's builders.

Nothing is downloaded: the base is empty, or this machine's own Python. `make image-test` tests the whole image.
"""

import io
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.support.build_context import pack
from tests.google_cloud import images
from tests.image import base, contents
from tests.image import engine as engines
from tests.image.engine import Engine
from tests.trainer.running import ROOT
from trainer.contract.identity import code_files

BELONGS = ["report/page.html", "deep/er/module.py", "NOTICE", "deep/NOTICE"]
BELONGS_NOT = [
    "key.json", ".env", ".git/config.py", "__pycache__/old.cpython-311.pyc", "__pycache__/left.py",
    "deep/__pycache__/old.pyc", ".idea/x.py", "deep/.hidden.py", ".train.py.swp", "deep/train.py~", "#train.py#",
    "trainer.egg-info/x.py", "trainer.egg-info/PKG-INFO", "deep/requirements.txt", "notes.txt", "a.py.orig",
]  # fmt: skip


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with engines.running() as found:
        yield found


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy the folder trainer/ with more files that belong into the image, and with some that do not."""
    folder = tmp_path_factory.mktemp("context") / "trainer"
    shutil.copytree(ROOT / "trainer", folder)
    for name in [*BELONGS, *BELONGS_NOT]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in code_files(folder)}


def test_code_is_each_committed_file(context: Path) -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT / "trainer", capture_output=True, text=True, check=True)
    committed = {name for name in listed.stdout.splitlines() if (ROOT / "trainer" / name).is_file()}
    assert {"Dockerfile", ".dockerignore", "requirements.txt", "__main__.py"} <= committed <= names(ROOT / "trainer")
    assert names(context) == names(ROOT / "trainer") | set(BELONGS)


def test_package_for_cloud_build_is_the_code(context: Path) -> None:
    with tarfile.open(fileobj=io.BytesIO(pack(context))) as tar:
        assert set(tar.getnames()) == names(context)


def test_dockerignore_leaves_the_code(context: Path) -> None:
    """The patterns are read here; where there is an engine, its builders read them too."""
    rules = images.ignore_rules(context / ".dockerignore")
    assert set(images.context_files(context, rules)) == set(contents.copied(context))


@pytest.mark.parametrize("kit", ["0", "1"], ids=["classic builder", "BuildKit"])
def test_builder_copies_the_code_and_nothing_else(engine: Engine, context: Path, tmp_path: Path, kit: str) -> None:
    packed = tmp_path / "packed"
    with tarfile.open(fileobj=io.BytesIO(pack(context))) as tar:
        tar.extractall(packed, filter="data")
    (tmp_path / "Dockerfile").write_text("FROM scratch\nCOPY . trainer/\n")
    builders = [Engine(client, engine.host, DOCKER_BUILDKIT=kit) for client in engines.clients()]
    builders = [builder for builder in builders if kit == "0" or builder.has_buildkit()]
    if not builders:
        pytest.skip("this Docker has no BuildKit; install its plugin buildx")
    for builder in builders:
        for folder in (context, packed):
            tag = f"gpt2-training-test-context:{tmp_path.name.lower()}"
            builder.build(folder, tag, "--file", str(tmp_path / "Dockerfile"))
            container, target = builder.docker("create", tag, "none"), tmp_path / "copied"
            builder.docker("cp", f"{container}:/trainer", str(target))
            builder.docker("rm", container)
            builder.docker("rmi", tag)
            found = {p.relative_to(target).as_posix(): p.read_bytes() for p in target.rglob("*") if not p.is_dir()}
            shutil.rmtree(target)
            assert found == contents.copied(context), f"{builder.client} on {folder.name}"


@pytest.mark.slow
def test_container_holds_the_code_and_imports_every_module(engine: Engine, context: Path) -> None:
    """The whole Dockerfile except the packages, whose code comes from this environment."""
    for name in BELONGS:  # they are no modules
        (context / name).unlink()
    tag = "gpt2-training-test-furnished"
    engine.build(context, tag, network="none", BASE=base.furnished(engine))
    contents.assert_holds_the_code_and_nothing_else(engine, tag, context)
    contents.assert_every_module_imports(engine, tag, context, base.MOUNT)
    engine.docker("rmi", tag)

"""Run `pulumi preview` to get what the program declares: online, with the stack's state, or offline, without any."""

import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from infra import load
from infra.inputs.data_lock import lock_path
from infra.inputs.google import VOCABULARY, VOCABULARY_FILES
from infra.review.offline import compare
from infra.review.steps import Preview, UnreadablePreview, parse_preview
from infra.stack import config, plain_yaml, reading

PLACEHOLDER_PROJECT = "offline-review"  # for a stack file that names no project
PLACEHOLDER_TEXT = 8 * 2**20  # bytes
# The keys of a stack file that only make sense with the stack's real state.
STATE_KEYS = ("encryptionsalt", "encryptedkey", "secretsprovider")
PREVIEW = ("preview", "--json", "--show-sames", "--non-interactive")


class PreviewError(Exception):
    """A preview cannot be made. The message is one line for a person."""


class NoStack(PreviewError):
    """The backend does not know the stack."""


def stacks(root: Path) -> list[str]:
    """Return the names of all stacks that have a file in `root`."""
    return sorted(path.name.removeprefix("Pulumi.").removesuffix(".yaml") for path in root.glob("Pulumi.*.yaml"))


def online(stack: str, root: Path) -> Preview:
    """Return what `pulumi up` would do. Raise NoStack if there is no such stack, PreviewError if Pulumi fails."""
    done = _pulumi([*PREVIEW, "--stack", stack], root, _environment())
    if done.returncode and f"no stack named '{stack}' found" in done.stderr:
        raise NoStack(f"the backend has no stack {stack}")
    return _parsed(done, stack)


def _parsed(done: "subprocess.CompletedProcess[str]", stack: str) -> Preview:
    try:
        preview = parse_preview(done.stdout, stack)
    except UnreadablePreview:
        raise PreviewError(f"`pulumi preview --stack {stack}` fails: {_first(done.stderr)}") from None
    if done.returncode and not preview.errors:
        raise PreviewError(f"`pulumi preview --stack {stack}` fails without saying why; run it with --diff")
    return preview


def _pulumi(arguments: list[str], root: Path, environment: Mapping[str, str]) -> "subprocess.CompletedProcess[str]":
    try:
        return subprocess.run(["pulumi", *arguments], cwd=root, env=environment, capture_output=True, text=True)
    except FileNotFoundError:
        raise PreviewError("`pulumi` is not on PATH; run `. tools/activate` first") from None


def _environment(**more: str) -> dict[str, str]:
    # Without these, Pulumi fetches plugins before the program needs them. A stack on this machine needs none.
    quick = {"PULUMI_SKIP_UPDATE_CHECK": "true", "PULUMI_OPTION_SKIP_PLUGIN_PRE_INSTALL": "true"}
    return {**quick, **os.environ, **more}


# Offline. -----------------------------------------------------------------------------------------------------------


class Versions:
    """Two copies of the program and its stack files, in two folders: at a commit, and as they are in the checkout."""

    def __init__(self, checkout: Path, base: Path, head: Path):
        self._checkout, self._sides = checkout, (base, head)

    def compared(self, stack: str) -> Preview:
        """Return the changes from the commit to the checkout. Raise PreviewError if a version cannot be previewed."""
        if not any((side / f"Pulumi.{stack}.yaml").is_file() for side in self._sides):
            raise PreviewError(f"--stack {stack}: neither of the two versions has a Pulumi.{stack}.yaml")
        with ThreadPoolExecutor(2) as both:
            base, head = both.map(lambda side: self._preview(side, stack), self._sides)
        # If the stack file is deleted, the review shows what is known of the base, even if the base has errors.
        gone = not (self._sides[1] / f"Pulumi.{stack}.yaml").is_file()
        if base.errors and not head.errors and not gone:
            raise PreviewError(f"the base of stack {stack} cannot be previewed: {base.errors[0]}")
        return compare(base, head)

    def _preview(self, root: Path, stack: str) -> Preview:
        if not (root / f"Pulumi.{stack}.yaml").is_file():
            return Preview(stack, ())
        _prepare(root, self._checkout, stack)
        state = root.with_name(f"{root.name}-state")
        state.mkdir(exist_ok=True)
        # Use invalid credentials, so that the program cannot ask what exists in the cloud.
        invalid = {"GOOGLE_OAUTH_ACCESS_TOKEN": "none", "PULUMI_CONFIG_PASSPHRASE": ""}
        environment = _environment(PULUMI_BACKEND_URL=state.as_uri(), **invalid)
        for name in ("PULUMI_CONFIG_PASSPHRASE_FILE", "GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_CREDENTIALS"):
            environment.pop(name, None)
        made = _pulumi(["stack", "init", stack, "--non-interactive"], root, environment)
        if made.returncode:
            raise PreviewError(f"an empty stack {stack} cannot be made: {_first(made.stderr)}")
        done = _pulumi([*PREVIEW, "--stack", stack], root, environment)
        done.stdout = done.stdout.replace(str(root), str(self._checkout))  # the folder must not count as a difference
        return _parsed(done, stack)


@contextmanager
def versions(checkout: Path, ref: str) -> Iterator[Versions]:
    """Yield the versions of the commit `ref` and of the checkout. Raise PreviewError if git does not know `ref`."""
    with tempfile.TemporaryDirectory(prefix="review-") as temporary:
        base, head = Path(temporary).resolve() / "base", Path(temporary).resolve() / "head"
        base.mkdir()
        archive = Path(temporary) / "base.tar"
        _git(checkout, "archive", f"--output={archive}", ref, what=ref)
        with tarfile.open(archive) as packed:
            packed.extractall(base, filter="data")
        head.mkdir()
        listed = _git(checkout, "ls-files", "-z", "--cached", "--others", "--exclude-standard", what=ref)
        for name in filter(None, listed.split("\0")):
            if (checkout / name).is_file():  # git also lists files that were deleted
                (head / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(checkout / name, head / name)
        yield Versions(checkout, base, head)


def _git(checkout: Path, *arguments: str, what: str) -> str:
    done = subprocess.run(["git", "-C", str(checkout), *arguments], capture_output=True, text=True)
    if done.returncode:
        raise PreviewError(f"--base {what}: git says {_first(done.stderr)}; fetch that commit, or name another")
    return done.stdout


def _first(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return lines[0].removeprefix("error: ").removeprefix("fatal: ") if lines else "nothing"


def _prepare(root: Path, checkout: Path, stack: str) -> None:
    """Add to a version what git does not contain: the environment, the text, the vocabulary."""
    for name in (".venv", *(f"data/{path.name}" for path in (checkout / "data").glob("*"))):
        if (checkout / name).exists() and not (root / name).exists():
            (root / name).parent.mkdir(exist_ok=True)
            (root / name).symlink_to((checkout / name).resolve())
    path = root / f"Pulumi.{stack}.yaml"
    try:
        content = plain_yaml.parse(path.read_text(encoding="utf-8"))
        settings: dict[str, Any] = content["config"]
        platform = reading.stack_values(stack, root)[0].get("platform", "local")
    except (OSError, yaml.YAMLError, TypeError, KeyError, UnicodeDecodeError, config.ConfigError):
        return  # the preview explains the problem better
    for key in STATE_KEYS:
        content.pop(key, None)
    content["config"] = {key: reading.readable(value, key) for key, value in settings.items()}
    if platform == "google":
        content["config"].setdefault("gcp:project", PLACEHOLDER_PROJECT)
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    _make_placeholder_data(root, stack)


def _make_placeholder_data(root: Path, stack: str) -> None:
    """Write a placeholder text and vocabulary if the checkout has none, as in a pull request.

    Their content does not influence the review.
    """
    try:
        stack_config = load.from_file(stack, root)
    except config.ConfigError:
        return
    text = stack_config.text
    if not text.exists() and not lock_path(text).exists() and text.resolve().is_relative_to(root):
        text.parent.mkdir(parents=True, exist_ok=True)
        line = f"{stack_config.file.data.path}\n"  # so that another path means another text
        text.write_text(line * (PLACEHOLDER_TEXT // len(line)), encoding="utf-8")
    for name in VOCABULARY_FILES if stack_config.google else ():
        file = root / VOCABULARY / name
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()

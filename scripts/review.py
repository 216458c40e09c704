"""What a change would do to stacks, as Markdown for a pull request: what is lost, interrupted, opened, what it costs.

With credentials the stack's state is asked, as `pulumi up` would. Offline (a pull request from a fork, a stack that was
never stood up) the program at --base and as it is here are compared with each other, and the text says so.

Exit codes: 0 nothing changes; 10 changes; 20 data would be lost, a run interrupted or something opened to everybody;
30 against a mandatory policy; 40 a preview fails; 2 the review itself cannot be made.
"""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console

from infra.review.capture import NoStack, PreviewError, Versions, online, stacks, versions
from infra.review.interruption import Standing, stand
from infra.review.markdown import render
from infra.review.offline import compare
from infra.review.steps import Preview, UnreadablePreview, parse
from infra.review.verdict import Finding, Review, review
from policy.rules import Resource, check
from scripts.support.common import CHECKOUT, UserError, run_main

BASES = ("origin/main", "main", "HEAD")
ASKED_NOT = "an offline review asks no bucket"


def reviewed(preview: Preview, offline: str = "", gone: bool = False) -> Review:
    """A review with the policies' results. offline: why the state was not asked. gone: the stack has no file now."""
    return review(preview, _policies(preview), _local_alone if offline else stand, offline, gone)


def _policies(preview: Preview) -> list[Finding]:
    resources = [Resource(s.urn, s.type, s.name, s.after.inputs) for s in preview.steps if s.after is not None]
    names = {step.urn: step.name for step in preview.steps}
    found = check(resources)
    return [Finding(one.rule, one.level == "mandatory", one.message, names.get(one.urn, "")) for one in found]


def _local_alone(bucket: str, run: str) -> Standing | str | None:
    return stand(bucket, run) if bucket.startswith("file://") else ASKED_NOT


def from_files(paths: Sequence[str]) -> Review:
    """Of one preview against a state, or of two against none. Raises UserError."""
    previews = []
    for path in paths:
        try:
            previews.append(parse(Path(path).read_text(encoding="utf-8"), name=path))
        except (OSError, UnicodeDecodeError, UnreadablePreview) as error:
            raise UserError(f"--previews {path}: {error}") from None
    if len(previews) == 1:
        return reviewed(previews[0])
    if previews[0].stack != previews[1].stack:
        raise UserError(f"--previews: {previews[0].stack} and {previews[1].stack} are two stacks; give two of one")
    for path, preview in zip(paths, previews, strict=True):
        if any(step.op not in ("create", "import", "read") for step in preview.steps):
            raise UserError(
                f"--previews {path}: it was made against a state, and a pair must know none; make each with"
                " `pulumi preview --json --show-sames` in a stack that was never stood up, or give one file"
            )
    return reviewed(compare(*previews), f"from {Path(paths[0]).name} to {Path(paths[1]).name}")


def from_checkout(names: Sequence[str], base: str | None, offline: bool, console: Console) -> list[Review]:
    """Of stacks, each online if it can be. Raises UserError, PreviewError."""
    found = []
    with ExitStack() as open_until_the_end:
        both: Versions | None = None
        for name in names:
            gone = not (CHECKOUT / f"Pulumi.{name}.yaml").is_file()
            why = "no credentials are used" if offline else "there is no file to preview" if gone else ""
            with console.status(f"previewing {name}"):
                if not why:
                    try:
                        found.append(reviewed(online(name, CHECKOUT)))
                        if base:
                            said = (
                                f"--base {base}: not used for {name}, whose state is asked; --offline compares with it"
                            )
                            console.print(said, highlight=False, markup=False, soft_wrap=True)
                        continue
                    except NoStack as error:
                        why = str(error)
                commit = base or _base()
                if both is None:
                    both = open_until_the_end.enter_context(versions(CHECKOUT, commit))
                found.append(reviewed(both.compared(name), f"{why}; against {commit}", gone))
    return found


def _base() -> str:
    """The first of the usual names that git knows."""
    for name in BASES:
        command = ["git", "-C", str(CHECKOUT), "rev-parse", "--verify", "--quiet", f"{name}^{{commit}}"]
        if subprocess.run(command, capture_output=True).returncode == 0:
            return name
    raise UserError("--base: there is no commit to compare with; this command wants a git checkout")


def _had(base: str, stack: str) -> bool:
    """Whether the stack had a file at that commit."""
    command = ["git", "-C", str(CHECKOUT), "cat-file", "-e", f"{base}:Pulumi.{stack}.yaml"]
    return subprocess.run(command, capture_output=True).returncode == 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes the review; the exit code tells what it found."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.review", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stack", nargs="+", action="extend", metavar="STACK", help="which stacks (default: all)")
    parser.add_argument(
        "--base", metavar="REF", help="offline, compare with this commit (default: origin/main or main)"
    )
    parser.add_argument("--offline", action="store_true", help="ask no cloud and no state, compare two versions")
    parser.add_argument(
        "--previews",
        nargs="+",
        metavar="FILE",
        help="read what `pulumi preview --json --show-sames` wrote: one file with the state, or base and head without",
    )
    parser.add_argument("--to", metavar="FILE", help="write the Markdown there instead of to stdout")
    options = parser.parse_args(arguments)
    if options.previews and len(options.previews) > 2:
        parser.error("--previews: one file, or two: base and head")
    if options.previews:
        found = [from_files(options.previews)]
    else:
        known = stacks(CHECKOUT)
        for name in options.stack or ():
            if name not in known and not _had(options.base or _base(), name):
                raise UserError(f"--stack {name}: there is no Pulumi.{name}.yaml; there are {', '.join(known)}")
        wanted = list(dict.fromkeys(options.stack or known))
        found = from_checkout(wanted, options.base, options.offline, Console(stderr=True))
    text = render(found, {str(CHECKOUT): "."})
    if options.to:
        Path(options.to).write_text(text, encoding="utf-8")
    else:
        sys.stdout.write(text)
    return max(one.level for one in found)


if __name__ == "__main__":
    run_main(main, PreviewError)

"""Review what a change would do to stacks, as Markdown for a pull request.

The review says what is lost, interrupted and opened, and what it costs. With credentials it asks for the stack's state,
as `pulumi up` does. Offline (for a pull request from a fork, or a stack that was never deployed) it compares the
program at --base with the program in the checkout, and says so.

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
from infra.review.interruption import RunSnapshot, look_up_run
from infra.review.markdown import render
from infra.review.offline import compare
from infra.review.steps import Preview, UnreadablePreview, parse_preview
from infra.review.verdict import Review, Violation, review
from policy.rules import Resource, check
from scripts.support.common import CHECKOUT, UserError, run_main

BASES = ("origin/main", "main", "HEAD")
NOT_ASKED = "an offline review asks no bucket"


def reviewed(preview: Preview, offline: str = "", gone: bool = False) -> Review:
    """Return the review of a preview, including the policies.

    `offline` says why the state was not asked, and `gone` whether the stack's file was deleted.
    """
    return review(preview, _violations(preview), _look_up_local_run if offline else look_up_run, offline, gone)


def _violations(preview: Preview) -> list[Violation]:
    resources = [Resource(s.urn, s.type, s.name, s.after.inputs) for s in preview.steps if s.after is not None]
    names = {step.urn: step.name for step in preview.steps}
    return [
        Violation(finding.rule, finding.level == "mandatory", finding.message, names.get(finding.urn, ""))
        for finding in check(resources)
    ]


def _look_up_local_run(bucket: str, run: str) -> RunSnapshot | str | None:
    return look_up_run(bucket, run) if bucket.startswith("file://") else NOT_ASKED


def from_files(paths: Sequence[str]) -> Review:
    """Review one preview that was made with the stack's state, or compare two that were made without.

    Raise UserError if the files are not such previews.
    """
    previews = []
    for path in paths:
        try:
            previews.append(parse_preview(Path(path).read_text(encoding="utf-8"), name=path))
        except (OSError, UnicodeDecodeError, UnreadablePreview) as error:
            raise UserError(f"--previews {path}: {error}") from None
    if len(previews) == 1:
        return reviewed(previews[0])
    if previews[0].stack != previews[1].stack:
        raise UserError(f"--previews: {previews[0].stack} and {previews[1].stack} are two stacks; give two of one")
    for path, preview in zip(paths, previews, strict=True):
        if any(step.op not in ("create", "import", "read") for step in preview.steps):
            raise UserError(
                f"--previews {path}: it was made with a state, and two previews must be made without; make each with"
                " `pulumi preview --json --show-sames` in a stack that was never deployed, or give one file"
            )
    return reviewed(compare(*previews), f"from {Path(paths[0]).name} to {Path(paths[1]).name}")


def from_checkout(names: Sequence[str], base: str | None, offline: bool, console: Console) -> list[Review]:
    """Review stacks, each online if possible.

    Args:
        names: the stacks.
        base: the commit for an offline review, or None for the usual one.
        offline: whether all reviews must be offline.
        console: where progress is shown.

    Raises:
        UserError: if there is no commit to compare with.
        PreviewError: if a preview cannot be made.
    """
    reviews = []
    with ExitStack() as open_until_the_end:
        both: Versions | None = None
        for name in names:
            gone = not (CHECKOUT / f"Pulumi.{name}.yaml").is_file()
            why = "no credentials are used" if offline else "there is no file to preview" if gone else ""
            with console.status(f"previewing {name}"):
                if not why:
                    try:
                        reviews.append(reviewed(online(name, CHECKOUT)))
                        if base:
                            note = (
                                f"--base {base}: not used for {name}, whose state is asked; --offline compares with it"
                            )
                            console.print(note, highlight=False, markup=False, soft_wrap=True)
                        continue
                    except NoStack as error:
                        why = str(error)
                commit = base or _base()
                if both is None:
                    both = open_until_the_end.enter_context(versions(CHECKOUT, commit))
                reviews.append(reviewed(both.compared(name), f"{why}; against {commit}", gone))
    return reviews


def _base() -> str:
    """Return the first of the usual names that git knows."""
    for name in BASES:
        command = ["git", "-C", str(CHECKOUT), "rev-parse", "--verify", "--quiet", f"{name}^{{commit}}"]
        if subprocess.run(command, capture_output=True).returncode == 0:
            return name
    raise UserError("--base: there is no commit to compare with; this command needs a git checkout")


def _had_file(base: str, stack: str) -> bool:
    """Return whether the stack had a file at that commit."""
    command = ["git", "-C", str(CHECKOUT), "cat-file", "-e", f"{base}:Pulumi.{stack}.yaml"]
    return subprocess.run(command, capture_output=True).returncode == 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the review, and return the exit code of the worst stack."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.review", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stack", nargs="+", action="extend", metavar="STACK", help="which stacks (default: all)")
    parser.add_argument(
        "--base", metavar="REF", help="offline, compare with this commit (default: origin/main or main)"
    )
    parser.add_argument("--offline", action="store_true", help="compare two versions, without any cloud or state")
    parser.add_argument(
        "--previews",
        nargs="+",
        metavar="FILE",
        help="read the output of `pulumi preview --json --show-sames`: one file made with the state, or two made"
        " without, base and head",
    )
    parser.add_argument("--to", metavar="FILE", help="write the Markdown to this file instead of stdout")
    options = parser.parse_args(arguments)
    if options.previews and len(options.previews) > 2:
        parser.error("--previews: one file, or two: base and head")
    if options.previews:
        reviews = [from_files(options.previews)]
    else:
        stack_names = stacks(CHECKOUT)
        for name in options.stack or ():
            if name not in stack_names and not _had_file(options.base or _base(), name):
                raise UserError(f"--stack {name}: there is no Pulumi.{name}.yaml; there are {', '.join(stack_names)}")
        names = list(dict.fromkeys(options.stack or stack_names))
        reviews = from_checkout(names, options.base, options.offline, Console(stderr=True))
    text = render(reviews, {str(CHECKOUT): "."})
    if options.to:
        Path(options.to).write_text(text, encoding="utf-8")
    else:
        sys.stdout.write(text)
    return max(review.level for review in reviews)


if __name__ == "__main__":
    run_main(main, PreviewError)

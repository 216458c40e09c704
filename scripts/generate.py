"""Write text with a trained model: the run's own, or any GPT-2 in Hugging Face format from a folder.

Without a prompt, on a terminal, it asks for prompts one after another. Ctrl-C ends a text, Ctrl-D the session.
"""

import argparse
import contextlib
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from scripts.support.arguments import positive, share, stop, temperature, whole_number
from scripts.support.common import UserError, run_main
from scripts.support.writing import Sampling, Writer, WrittenText, add_model_arguments, open_writer

END = "/quit"


@dataclass(frozen=True)
class TextJob:
    """A text to write: the prompt, its tokens, and the sampling options."""

    prompt: str
    ids: list[int]
    sampling: Sampling


def read_prompts(name: str) -> list[str]:
    """Return the prompts of a file, or of stdin if `name` is "-". Blank lines are ignored.

    In a .jsonl file, a prompt is the "prompt" of each line; in another file, each line is one. Raise UserError if the
    file cannot be read or has no prompt.
    """
    try:
        data = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
        lines = data.decode("utf-8-sig").replace("\r\n", "\n").split("\n")  # splitlines() also splits at \x0b, \u2028
    except UnicodeDecodeError as error:
        raise UserError(f"--file {name}: not UTF-8 at byte {error.start}") from None
    except OSError as error:
        raise UserError(f"--file {name}: {error.strerror}") from None
    numbered = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    prompts = [_prompt(line, f"--file {name}, line {n}") if name.endswith(".jsonl") else line for n, line in numbered]
    if not prompts:
        raise UserError(f"--file {name}: there is no prompt in it; write one a line")
    return prompts


def _prompt(line: str, where: str) -> str:
    try:
        fields = json.loads(line)
    except ValueError as error:
        raise UserError(f"{where}: not JSON ({error})") from None
    if not isinstance(fields, dict) or not isinstance(fields.get("prompt"), str):
        raise UserError(f'{where}: write {{"prompt": "…"}}')
    return str(fields["prompt"])


def write_all(writer: Writer, prompts: list[str], samples: int, sampling: Sampling, *, as_json: bool) -> None:
    """Write all samples of all prompts to stdout. Sample i has the seed + i, so that it can be repeated alone."""
    jobs = [
        TextJob(prompt, ids, replace(sampling, seed=sampling.seed + sample))
        for prompt in prompts
        for ids in [writer.encode(prompt)]
        for sample in range(samples)
    ]
    if (longest := max(len(job.ids) for job in jobs)) >= writer.window:
        which = "the prompt" if len(prompts) == 1 else "the longest prompt"
        print(f"{which} has {longest} tokens, the model sees the last {writer.window - 1} of them", file=sys.stderr)
    stderr = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    no_bar = not stderr.is_terminal or sys.stdout.isatty() or len(jobs) == 1  # on a terminal, the texts show progress
    with Progress(*columns, console=stderr, transient=True, disable=no_bar) as bar:
        for number, job in enumerate(bar.track(jobs, description="writing"), start=1):
            text = writer.write(job.ids, job.sampling)
            if as_json:
                written = "".join(text)
                line = {"prompt": job.prompt, "text": written, "finish": text.finish, "tokens": text.tokens}
                print(json.dumps(line | {"seed": job.sampling.seed}, ensure_ascii=False), flush=True)
                continue
            if len(jobs) > 1:
                print(f"{'' if number == 1 else chr(10)}--- {number} of {len(jobs)} ---")
            _show(job.prompt, text)


def _show(prompt: str, text: WrittenText) -> None:
    print(f"\033[1m{prompt}\033[0m" if sys.stdout.isatty() and prompt else prompt, end="", flush=True)
    for piece in text:
        print(piece, end="", flush=True)
    print()


def session(writer: Writer, samples: int, sampling: Sampling, ask: Callable[[str], str] = input) -> None:
    """Ask for prompts until Ctrl-D or /quit. Each text has the next seed, so that a session can be repeated."""
    with contextlib.suppress(ImportError):  # some systems lack it, and so arrow keys and history
        import readline  # noqa: F401
    print(f"{writer.name}: write a beginning. Ctrl-C ends a text, Ctrl-D or {END} the session.")
    seed = sampling.seed
    while True:
        try:
            prompt = ask("> ")
        except EOFError:
            print()
            return
        except KeyboardInterrupt:  # discard the typed prompt
            print()
            continue
        if prompt.strip() == END:
            return
        try:
            write_all(writer, [prompt], samples, replace(sampling, seed=seed), as_json=False)
        except KeyboardInterrupt:
            print()
        except UserError as error:  # of this prompt
            print(f"error: {error}", file=sys.stderr)
        seed += samples


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.generate", description=__doc__)
    usual = Sampling()
    parser.add_argument(
        "prompt", nargs="?", help="the beginning of the text; an empty one starts a text of its own; none: a session"
    )
    parser.add_argument("--file", metavar="PROMPTS", help="a prompt a line, or .jsonl with a prompt each; - is stdin")
    parser.add_argument("--json", action="store_true", help='print a JSON line a text: "prompt", "text", "finish", …')
    parser.add_argument(
        "--tokens", type=positive, default=usual.tokens, help="how many to write at most (default %(default)s)"
    )
    parser.add_argument(
        "--temperature",
        type=temperature,
        default=usual.temperature,
        help="0 is always the likeliest token (default %(default)s)",
    )
    parser.add_argument(
        "--top-k", type=whole_number, default=usual.top_k, help="choose among so many, 0 is all (default %(default)s)"
    )
    parser.add_argument(
        "--top-p", type=share, default=usual.top_p, help="among the likeliest of this probability (default %(default)s)"
    )
    parser.add_argument(
        "--stop",
        type=stop,
        action="append",
        default=[],
        metavar="TEXT",
        help="the text ends before it; may be given again; $'\\n' is a new line in bash",
    )
    parser.add_argument(
        "--seed",
        type=whole_number,
        default=usual.seed,
        help="of the choice, sample i has seed + i (default %(default)s)",
    )
    parser.add_argument("--samples", type=positive, default=1, help="how many texts a prompt (default %(default)s)")
    add_model_arguments(parser)
    options = parser.parse_args(arguments)
    if options.prompt is not None and options.file is not None:
        parser.error("give a prompt or --file, not both")
    prompts = None if options.file is None else read_prompts(options.file)
    if options.prompt is not None:
        prompts = [options.prompt]
    if prompts is None and (options.json or not sys.stdin.isatty()):
        raise UserError("there is no prompt: give one, or --file PROMPTS, or start it at a terminal for a session")
    sampling = Sampling(
        tokens=options.tokens,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        seed=options.seed,
        stop=tuple(options.stop),
    )
    writer = open_writer(options)
    if prompts is None:
        session(writer, options.samples, sampling)
    else:
        write_all(writer, prompts, options.samples, sampling, as_json=options.json)
    return 0


if __name__ == "__main__":
    run_main(main)

"""Turn a training job of AI Platform or Vertex AI into a stack file, and report the use of each of its keys.

Read AI Platform's config.yaml (trainingInput) and Vertex AI's CustomJob, jobSpec or tuning job, as YAML or JSON.
"""

import argparse
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from infra import load
from infra.importing import ai_platform, vertex
from infra.importing.draft import Draft, ImportProblem, Note
from infra.stack import config, plain_yaml
from scripts.support.common import CHECKOUT, UserError, run_main
from scripts.support.findings import FindingRow, print_findings

HIGHEST_USUAL_RATE = 0.002  # of AdamW: GPT-2's rates are from 0.0001 to 0.0006
REGION = "us-central1"  # for a job without a region
STYLES = {"mapped": "green", "replaced": "yellow", "left out": "cyan", "to fill in": "bold red"}
DATA = {"path": "data/my-data.txt", "tokenizer": "gpt2"}


def convert(path: Path, stack: str) -> tuple[str, Draft]:
    """Return a stack file's text and its draft, which has a note about each key. Raise UserError as read_job() does."""
    draft = read_job(path)
    if not draft.region:
        draft.region = REGION
        draft.note("to fill in", "region", "not given", f"gcp:region: {REGION} is a guess")
    draft.note("to fill in", "data", "not in such files", "data.path: your text; data/my-data.txt is a guess")
    if draft.model == {"size": "gpt2"} and not any(note.words.startswith("model.size") for note in draft.notes):
        draft.note("to fill in", "model", "not in such files", "model.size: gpt2 is a guess")
    rate = draft.hyperparameters.get("learningRate", 0)
    if rate > HIGHEST_USUAL_RATE and "optimizer" not in draft.hyperparameters:
        guess = f"trainingInput.hyperparameters.optimizer: it is adamw unless you say sgd, and {rate:g} is much for it"
        draft.note("to fill in", "optimizer", "not given", guess)
    text = render(draft, path.name)
    draft.notes += _problems(draft, text, stack)
    return text, draft


def read_job(path: Path) -> Draft:
    """Return the draft of a stack file for the job in a file. Raise UserError if that is not a training job."""
    try:
        content = plain_yaml.parse(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise UserError(
            f"{path}: found no keys; it must be a training job of AI Platform or Vertex AI, in YAML or JSON"
        )
    try:
        if ai_platform.is_job(content):
            return ai_platform.read(content)
        if vertex.is_job(content):
            return vertex.read(content)
    except ImportProblem as error:
        raise UserError(f"{path}: {error}") from None
    expected_keys = "trainingInput, scaleTier, workerPoolSpecs, jobSpec or trialJobSpec"
    raise UserError(f"{path}: found the keys {', '.join(map(str, content))}, and none of {expected_keys}")


def values(draft: Draft) -> dict[str, Any]:
    """Return the stack file's keys and values, in the same order as in the committed stack files."""
    training = dict(draft.training)
    if draft.hyperparameters:
        training["hyperparameters"] = draft.hyperparameters
    sections = {
        "platform": "google",
        "trainingInput": training,
        "sweep": draft.sweep,
        "model": draft.model,
        "data": DATA,
        "machines": draft.machines,
        "limits": draft.limits,
    }
    return {name: value for name, value in sections.items() if value}


def render(draft: Draft, source: str) -> str:
    """Return the stack file's text, with comments for a person."""
    lines = [f"# From {source} by `python -m scripts.import_config`.", "config:", f"  gcp:region: {draft.region}"]
    for name, value in values(draft).items():
        if name == "data":
            lines.append("  # Your text; above 64 MiB: python -m scripts.upload_data")
        lines += _block(f"gpt2-training:{name}", value)
        if name == "trainingInput" and draft.tuning:
            lines.append("  # The search of the given file, which this file does not run:")
            lines += [f"  #   {line}" for line in yaml.safe_dump(draft.tuning, sort_keys=False).splitlines()]
    return "\n".join(lines) + "\n"


def _block(name: str, value: Any) -> list[str]:
    """Return the lines of a key as YAML. An object of plain values is on one line."""
    if isinstance(value, dict) and any(isinstance(inner, dict) for inner in value.values()):
        return [f"  {name}:", *(f"  {line}" for key, inner in value.items() for line in _block(key, inner))]
    return [f"  {name}: {yaml.safe_dump([value], sort_keys=False, default_flow_style=True, width=4096).strip()[1:-1]}"]


def _problems(draft: Draft, text: str, stack: str) -> list[Note]:
    """Return the errors that `pulumi preview` would report, as notes."""
    keys = plain_yaml.parse(text)["config"]
    own = {name.partition(":")[2]: value for name, value in keys.items() if name.startswith("gpt2-training:")}
    try:
        load.load(own, stack, CHECKOUT, {"region": draft.region})
    except config.ConfigError as error:
        split = (problem.removeprefix("gpt2-training:").partition(": ") for problem in error.problems)
        return [Note("to fill in", key, "", message) for key, _, message in split]
    return []


def show(draft: Draft, console: Console) -> None:
    """Print the use of each key: as a table on a terminal, as lines into a log."""
    order = list(STYLES)
    notes = sorted(draft.notes, key=lambda note: order.index(note.state))
    rows = []
    for note in notes:
        value = f" {note.found}" if note.found else ""
        line = f"{note.state}: {note.key}{value}: {note.words}"
        rows.append(FindingRow(line, note.state, STYLES[note.state], (note.key, note.found, note.words)))
    print_findings(rows, ("key", "found", "now"), console)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.import_config", description=__doc__)
    parser.add_argument("config", type=Path, metavar="FILE", help="the job, for example config.yaml")
    parser.add_argument("--stack", default="imported", help="the new stack's name (default: %(default)s)")
    parser.add_argument("--to", type=Path, metavar="FILE", help="where to write (default: Pulumi.STACK.yaml)")
    parser.add_argument("--force", action="store_true", help="overwrite an existing file")
    options = parser.parse_args(arguments)
    target: Path = options.to or CHECKOUT / f"Pulumi.{options.stack}.yaml"
    text, draft = convert(options.config, options.stack)
    try:
        with target.open("w" if options.force else "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise UserError(f"{target} is there already; name another --stack or --to, or write over it: --force") from None
    except OSError as error:
        raise UserError(f"{target} cannot be written ({error.strerror})") from None
    console = Console()
    show(draft, console)
    counted = ", ".join(f"{sum(note.state == state for note in draft.notes)} {state}" for state in STYLES)
    console.print(f"{counted}; wrote {target}", highlight=False, soft_wrap=True, markup=False)
    return 0


if __name__ == "__main__":
    run_main(main)

"""Stack file -> validated StackConfig -> JobSpec. Every error is one line: the key, what was found, what to do.

Pure but for reading: nothing here needs the Pulumi CLI, so that scripts read a stack file as Pulumi does.
"""

import difflib
import json
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, Field, ValidationError

from infra.explain import explain, unknown
from infra.preflight import DEFAULT_TEXT, disk_problem, host_problems, text_problems
from trainer import spec

PROJECT = "gpt2-training"
ROOT = Path(__file__).resolve().parent.parent
# AI Platform's presets: workers and parameter servers, beside one master.
TIERS: dict[str, tuple[int, int]] = {
    "BASIC": (0, 0),
    "BASIC_GPU": (0, 0),
    "STANDARD_1": (4, 3),
    "PREMIUM_1": (19, 11),
}
EXAMPLES = {
    "trainingInput": "trainingInput: {workerCount: 1, hyperparameters: {learningRate: 0.003}}",
    "trainingInput.hyperparameters": "hyperparameters: {learningRate: 0.003, batchSize: 16}",
    "model": "model: {size: gpt2}",
    "data": f"data: {{path: {DEFAULT_TEXT}, tokenizer: train}}",
    "data.path": f"path: {DEFAULT_TEXT}",
    "evaluation": "evaluation: {every: 100}",
    "checkpoints": "checkpoints: {every: 250, keep: 2}",
}


class ConfigError(Exception):
    """What a stack file asks for cannot be done: one line a problem."""

    def __init__(self, problems: list[str]):
        super().__init__("\n".join(problems))
        self.problems = problems


def _digits(value: Any) -> Any:
    """AI Platform's files quote their 64-bit numbers: workerCount: "10"."""
    return int(value) if isinstance(value, str) and re.fullmatch("[0-9]{1,6}", value) else value


Count = Annotated[int, Field(ge=0, le=1000), BeforeValidator(_digits)]


class TrainingInput(spec.Strict):
    """AI Platform's words. Machine types mean nothing to `platform: local`, where a machine is a process."""

    scale_tier: Literal["CUSTOM", "BASIC", "BASIC_GPU", "STANDARD_1", "PREMIUM_1"] = "CUSTOM"
    master_type: str | None = None
    worker_type: str | None = None
    worker_count: Count = 0
    parameter_server_type: str | None = None
    parameter_server_count: Count = 0
    hyperparameters: spec.Hyperparameters = spec.Hyperparameters()

    def counts(self) -> tuple[int, int]:
        """Workers and parameter servers, of the preset or as counted."""
        return TIERS.get(self.scale_tier, (self.worker_count, self.parameter_server_count))


class StackFile(spec.Strict):
    """All keys of this project that a stack file may have."""

    platform: Literal["local", "google"] = "local"
    training_input: TrainingInput
    model: spec.Model
    data: spec.Data
    evaluation: spec.Evaluation = spec.Evaluation()
    checkpoints: spec.Checkpoints = spec.Checkpoints()
    launch: int = Field(1, ge=1)


@dataclass(frozen=True)
class StackConfig:
    """A stack file that is consistent in itself. Whether this machine can run it, job_spec() finds out."""

    stack: str
    root: Path  # relative paths of the stack file start here
    file: StackFile

    @property
    def bucket(self) -> str:
        return bucket_url(self.stack, self.root)

    @property
    def text(self) -> Path:
        """The source text on this machine."""
        return self.root / Path(self.file.data.path).expanduser()

    @property
    def workers(self) -> int:
        return self.file.training_input.counts()[0]

    def words(self) -> dict[str, Any]:
        """The stack file's own keys and values, without defaults."""
        return self.file.model_dump(mode="json", by_alias=True, exclude_unset=True)


def bucket_url(stack: str, root: Path = ROOT) -> str:
    """Where a local stack keeps its files: a folder of the checkout, as file://."""
    return (root.resolve() / "artifacts" / stack).as_uri()


def load(values: Mapping[str, Any], stack: str, root: Path = ROOT) -> StackConfig:
    """Validates a stack file's values, keyed without the project's name. Raises ConfigError with all problems."""
    try:
        file = StackFile.model_validate(dict(values), strict=True, by_alias=True, by_name=False)
    except ValidationError as error:
        raise ConfigError(explain(error, StackFile, PROJECT, EXAMPLES)) from None
    if problems := _combinations(file):
        raise ConfigError([f"{PROJECT}:{problem}" for problem in problems])
    return StackConfig(stack, root, file)


def _combinations(file: StackFile) -> list[str]:
    """Values that are fine alone and not together."""
    problems = []
    training, parameters = file.training_input, file.training_input.hyperparameters
    workers, servers = training.counts()
    if training.scale_tier in TIERS:
        given = {"worker_count": "workerCount", "parameter_server_count": "parameterServerCount"}
        for name in given.keys() & training.model_fields_set:
            problems.append(
                f"trainingInput.{given[name]}: scaleTier {training.scale_tier} sets it; remove one, or use CUSTOM"
            )
        if servers:
            problems.append(
                f"trainingInput.scaleTier: {training.scale_tier} has {servers} parameter servers, which are not there"
                f" yet; use scaleTier: CUSTOM with workerCount: {workers}"
            )
    elif servers:
        problems.append(
            f"trainingInput.parameterServerCount: found {servers}, but parameter servers are not there yet;"
            " use 0: the workers then exchange gradients directly"
        )
    if parameters.batch_size < 1 + workers:
        problems.append(
            f"trainingInput.hyperparameters.batchSize: found {parameters.batch_size}, less than the {1 + workers}"
            f" trainers (master and {workers} workers); use at least {1 + workers}, or fewer workers"
        )
    if parameters.sequence_length > file.model.positions:
        problems.append(
            f"trainingInput.hyperparameters.sequenceLength: found {parameters.sequence_length}, longer than"
            f" model.positions, {file.model.positions}; shorten it or raise model.positions"
        )
    if parameters.warmup_steps > parameters.steps:
        problems.append(
            f"trainingInput.hyperparameters.warmupSteps: found {parameters.warmup_steps}, more than steps,"
            f" {parameters.steps}; use at most {parameters.steps}"
        )
    if file.data.vocabulary_path is not None and file.data.tokenizer != "gpt2":
        problems.append(
            f"data.vocabularyPath: belongs to tokenizer gpt2, found {file.data.tokenizer}; remove it, or use gpt2"
        )
    if file.data.tokenizer == "checkpoint" and file.model.initialize is None:
        problems.append("data.tokenizer: checkpoint needs model.initialize, or use train, gpt2 or byte")
    if file.platform == "google":
        problems.append("platform: google is not there yet; use local")
    return problems


class _Loader(yaml.SafeLoader):
    """Reads plain scalars as Pulumi's YAML does: 1e-3 is a number, yes and 2026-01-01 are texts."""


_PLAIN = {
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": (r"[-+]?(0|[1-9][0-9_]*)|[-+]?0o?[0-7_]+|[-+]?0x[0-9a-fA-F_]+", "-+0123456789"),
    "float": (r"[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9_]*)?)([eE][-+]?[0-9]+)?", "-+.0123456789"),
    "null": (r"~|null|Null|NULL|", "~nN\0"),
    "merge": (r"<<", "<"),
}
_Loader.yaml_implicit_resolvers = {}
for _tag, (_pattern, _first) in _PLAIN.items():
    _letters: list[Any] = ["" if c == "\0" else c for c in _first]
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _letters)


def stack_values(stack: str, root: Path = ROOT) -> dict[str, Any]:
    """The config of Pulumi.<stack>.yaml as it stands there, keyed without the project's name. Raises ConfigError."""
    path = root / f"Pulumi.{stack}.yaml"
    stacks = {p.name.removeprefix("Pulumi.").removesuffix(".yaml"): p for p in root.glob("Pulumi.*.yaml")}
    if stack not in stacks:
        raise ConfigError([f"stack {stack}: there is no {path.name}; {unknown(stack, sorted(stacks))}"])
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)  # noqa: S506  a SafeLoader
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError([f"{path.name} cannot be read: {' '.join(str(error).split())}"]) from None
    found = content.get("config") if isinstance(content, dict) else None
    return _own({str(name): value for name, value in found.items()} if isinstance(found, dict) else {})


def _own(found: Mapping[str, Any]) -> dict[str, Any]:
    """The project's own keys; a misspelt project name is an error, as Pulumi would pass over it in silence."""
    values = {}
    for name, value in found.items():
        namespace, _, short = name.rpartition(":")
        if namespace in ("", PROJECT):  # Pulumi lets the project's own name be left out
            values[short] = value
        elif difflib.get_close_matches(namespace, [PROJECT], cutoff=0.8):
            raise ConfigError([f"{name}: unknown key; did you mean {PROJECT}:{short}?"])
    return values


def from_file(stack: str, root: Path = ROOT) -> StackConfig:
    """Reads Pulumi.<stack>.yaml. Raises ConfigError."""
    return load(stack_values(stack, root), stack, root)


def from_pulumi() -> StackConfig:
    """The configuration of the stack whose program is running. Raises ConfigError."""
    import pulumi
    from pulumi.runtime.config import CONFIG

    texts: dict[str, Any] = CONFIG.get()  # Pulumi hands over all values as texts, and objects as JSON
    values = {name: _parsed(text) for name, text in _own(texts).items()}
    return load(values, pulumi.get_stack(), ROOT)


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def job_spec(config: StackConfig, cores: int | None = None) -> spec.JobSpec:
    """The run that a stack declares. Raises ConfigError if this machine or the text cannot carry it out."""
    problems = [f"{PROJECT}:{problem}" for problem in [*text_problems(config), *host_problems(config)]]
    if problems:
        raise ConfigError(problems)
    file, training = config.file, config.file.training_input
    fingerprint = spec.fingerprint(config.text)
    placed: dict[str, Any] = {"path": f"data/{fingerprint}/{config.text.name}"}
    model, start = file.model, file.model
    if file.data.vocabulary_path is not None:
        placed["vocabulary_path"] = _located(config.root, file.data.vocabulary_path)[0]
    if file.model.initialize is not None:
        where, content = _located(config.root, file.model.initialize)
        model = file.model.model_copy(update={"initialize": where})
        start = file.model.model_copy(update={"initialize": content})
        if file.data.tokenizer == "checkpoint":
            placed["vocabulary_path"] = where
    data = file.data.model_copy(update=placed)
    code = spec.code_hash(config.root / "trainer")
    run = spec.run_id(start, data, fingerprint, training.hyperparameters, code)
    if problem := disk_problem(config, run):
        raise ConfigError([f"{PROJECT}:{problem}"])
    trainers = 1 + config.workers
    return spec.JobSpec(
        run=run,
        launch=file.launch,
        model=model,
        data=data,
        fingerprint=fingerprint,
        code=code,
        hyperparameters=training.hyperparameters,
        evaluation=file.evaluation,
        checkpoints=file.checkpoints,
        # With more threads than cores, trainers are 20 times slower.
        cluster=spec.Cluster(workers=config.workers, threads=max(1, (cores or _cores()) // trainers)),
    )


def _located(root: Path, named: str) -> tuple[str, str]:
    """Where the folder lies that a stack file names, and what stands for its content; hub ids and gs:// as they are."""
    folder = root / Path(named).expanduser()
    if not folder.is_dir():
        return named, named
    files = (path for path in folder.rglob("*") if path.is_file())
    return str(folder.resolve()), f"{folder.name}-{spec.hash_files(folder, files)}"


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def division(config: StackConfig) -> str | None:
    """How the batch falls on the trainers, if it does not divide evenly: no error, but good to know."""
    batch, trainers = config.file.training_input.hyperparameters.batch_size, 1 + config.workers
    least, rest = divmod(batch, trainers)
    if not rest:
        return None
    busy = batch / trainers / (least + 1)
    return f"batch {batch} over {trainers} trainers: {least} or {least + 1} each, {busy:.0%} busy"

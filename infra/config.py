"""Stack file -> validated StackConfig. Every error is one line: the key, what was found, what to do.

Pure but for reading: nothing here needs the Pulumi CLI, so that scripts read a stack file as Pulumi does.
"""

import difflib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from infra import masking, plain_yaml
from infra.explain import explain, shown, unknown
from infra.preflight import DEFAULT_TEXT
from infra.stack_file import StackFile, combination_problems
from trainer import sweep

PROJECT = "gpt2-training"
ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = {
    "trainingInput": "trainingInput: {workerCount: 1, hyperparameters: {learningRate: 0.003}}",
    "trainingInput.hyperparameters": "hyperparameters: {learningRate: 0.003, batchSize: 16}",
    "model": "model: {size: gpt2}",
    "data": f"data: {{path: {DEFAULT_TEXT}, tokenizer: train}}",
    "data.path": f"path: {DEFAULT_TEXT}",
    "evaluation": "evaluation: {every: 100}",
    "checkpoints": "checkpoints: {every: 250, keep: 2}",
    "parallel": "parallel: {plan: auto, wire: bf16}",
    "machines": "machines: {spot: true, accelerator: {type: nvidia-tesla-t4, count: 1}}",
    "machines.accelerator": "accelerator: {type: nvidia-tesla-t4, count: 1}",
    "machines.zones": "zones: [us-central1-a, us-central1-b]",
    "limits": "limits: {maxHours: 24, maxCostUsd: 200}",
    "network": "network: {nat: true}",
    "sweep.params": f"params: [{sweep.EXAMPLE}]",
}
DEFAULT_REGION = "us-central1"
# What stands for a secret, where not any text will do.
SECRETS = {"notify": "secret@example.com", "limits.billingAccount": "000000-000000-000000"}


class ConfigError(Exception):
    """What a stack file asks for cannot be done: one line a problem."""

    def __init__(self, problems: list[str]):
        super().__init__("\n".join(problems))
        self.problems = problems


@dataclass(frozen=True)
class StackConfig:
    """A stack file that is consistent in itself. Whether its run can be carried out, job_spec() finds out."""

    stack: str
    root: Path  # relative paths of the stack file start here
    file: StackFile
    provider: Mapping[str, Any] = field(default_factory=dict)  # the keys of gcp: without that name

    @property
    def google(self) -> bool:
        return self.file.platform == "google"

    @property
    def project(self) -> str:
        """Google's project; empty if none is given."""
        return _text(self.provider.get("project"))

    @property
    def region(self) -> str:
        return _text(self.provider.get("region")) or DEFAULT_REGION

    @property
    def bucket(self) -> str:
        """Where the run's files are: file:// or gs://."""
        return google_bucket(self.project, self.stack) if self.google else bucket_url(self.stack, self.root)

    @property
    def data_bucket(self) -> str:
        """Where the source text is, on Google Cloud: machines may only read it."""
        return f"{google_bucket(self.project, self.stack)}-data"

    @property
    def text(self) -> Path:
        """The source text on this machine."""
        return self.root / Path(self.file.data.path).expanduser()

    @property
    def workers(self) -> int:
        return self.file.training_input.counts()[0]

    @property
    def servers(self) -> int:
        return self.file.training_input.counts()[1]

    def words(self) -> dict[str, Any]:
        """The stack file's own keys and values, without defaults."""
        return self.file.model_dump(mode="json", by_alias=True, exclude_unset=True)


def bucket_url(stack: str, root: Path = ROOT) -> str:
    """Where a local stack keeps its files: a folder of the checkout, as file://."""
    return (root.resolve() / "artifacts" / stack).as_uri()


def google_bucket(project: str, stack: str) -> str:
    """Where a stack on Google Cloud keeps its files. A fixed name: the next `up` finds the bucket that was kept."""
    return f"gs://{project}-{stack}-gpt2"


def bucket_of(stack: str, root: Path = ROOT) -> str:
    """The address of a stack's bucket, whatever else its file says. Raises ConfigError."""
    values, provider = stack_values(stack, root)
    if values.get("platform", "local") != "google":
        return bucket_url(stack, root)
    from infra.google.rules import project_problems

    if problems := project_problems(provider, stack):
        raise ConfigError(problems)
    return google_bucket(_text(provider.get("project")), stack)


def _text(value: Any) -> str:
    """As Pulumi hands it over: YAML's numbers are texts, too."""
    return "" if value is None else value if isinstance(value, str) else json.dumps(value, default=str)


def load(
    values: Mapping[str, Any], stack: str, root: Path = ROOT, provider: Mapping[str, Any] | None = None
) -> StackConfig:
    """Validates a stack file's values, keyed without the project's name. Raises ConfigError with all problems."""
    try:
        file = StackFile.model_validate(dict(values), strict=True, by_alias=True, by_name=False)
    except ValidationError as error:
        raise ConfigError(explain(error, StackFile, PROJECT, EXAMPLES)) from None
    config = StackConfig(stack, root, file, provider or {})
    problems = [f"{PROJECT}:{problem}" for problem in combination_problems(file)]
    if config.google:
        from infra.google.rules import stack_problems  # a stack on this machine needs none of it

        problems += stack_problems(config)
        if not problems:  # sizes of machines that there are
            from infra.memory import memory_problems

            problems += [f"{PROJECT}:{problem}" for problem in memory_problems(config)]
    if problems:
        raise ConfigError(problems)
    return config


def stack_values(stack: str, root: Path = ROOT) -> tuple[dict[str, Any], dict[str, Any]]:
    """The config of Pulumi.<stack>.yaml: the project's own keys, readable(), and gcp's. Raises ConfigError."""
    every = _settings(stack, root)
    own = {name: _parsed(value) if isinstance(value, str) else value for name, value in _own(every, stack).items()}
    return {name: readable(value, name) for name, value in own.items()}, _gcp(every)


def readable(value: Any, path: str) -> Any:
    """A setting with a word in the place of each encrypted value, whose key only Pulumi has."""
    if isinstance(value, dict):
        if set(value) == {"secure"}:
            return SECRETS.get(path.removeprefix(f"{PROJECT}:"), "secret")
        return {key: readable(item, f"{path}.{key}") for key, item in value.items()}
    return [readable(item, path) for item in value] if isinstance(value, list) else value


def _settings(stack: str, root: Path) -> dict[str, Any]:
    """What stands below config: in Pulumi.<stack>.yaml. Raises ConfigError."""
    path = root / f"Pulumi.{stack}.yaml"
    stacks = {p.name.removeprefix("Pulumi.").removesuffix(".yaml"): p for p in root.glob("Pulumi.*.yaml")}
    if stack not in stacks:
        raise ConfigError([f"stack {stack}: there is no {path.name}; {unknown(stack, sorted(stacks))}"])
    try:
        content = plain_yaml.parse(path.read_text(encoding="utf-8"))
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise ConfigError([f"{path.name} cannot be read: {line}{error.problem}"]) from None
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError([f"{path.name} cannot be read: {' '.join(str(error).split())}"]) from None
    return {str(name): value for name, value in _section(path.name, content).items()}


def _section(file: str, content: Any) -> dict[Any, Any]:
    """What stands below config: in a stack file. Raises ConfigError if nothing does."""
    fix = "write your keys below it, as Pulumi.local.yaml and Pulumi.single.yaml do"
    if content is None:
        raise ConfigError([f"{file} is empty; give it a config: and {fix}"])
    if not isinstance(content, dict) or "config" not in content:
        names = [str(name) for name in content] if isinstance(content, dict) else []
        close = difflib.get_close_matches("config", names, n=1)
        raise ConfigError([f"{file} has no config:; {f'is {close[0]}: meant for it? else ' if close else ''}{fix}"])
    found = content["config"]
    if not isinstance(found, dict):
        raise ConfigError([f"{file}: config: found {shown(found)}, must be keys and values; {fix}"])
    return found


def _own(found: Mapping[str, Any], stack: str) -> dict[str, Any]:
    """The project's own keys; a misspelt project name is an error, as Pulumi would pass over it in silence."""
    values: dict[str, Any] = {}
    for name, value in found.items():
        namespace, _, short = name.rpartition(":")
        if namespace in ("", PROJECT):  # Pulumi lets the project's own name be left out
            if short in values:
                raise ConfigError([f"{name}: is there twice, as {short} and {PROJECT}:{short}; remove one"])
            values[short] = value
        elif difflib.get_close_matches(namespace, [PROJECT], cutoff=0.8):
            raise ConfigError([f"{name}: unknown key; did you mean {PROJECT}:{short}?"])
    if not values:  # one line instead of one for each key that there must be
        copied = "Pulumi.local.yaml and Pulumi.single.yaml are there to be copied"
        raise ConfigError([f"Pulumi.{stack}.yaml has no keys of {PROJECT} below config:; {copied}"])
    return values


def _gcp(found: Mapping[str, Any]) -> dict[str, Any]:
    return {name.removeprefix("gcp:"): value for name, value in found.items() if name.startswith("gcp:")}


def from_file(stack: str, root: Path = ROOT) -> StackConfig:
    """Reads Pulumi.<stack>.yaml. Raises ConfigError."""
    values, provider = stack_values(stack, root)
    return load(values, stack, root, provider)


def from_pulumi() -> StackConfig:
    """The configuration of the stack whose program is running. Raises ConfigError."""
    import pulumi
    from pulumi.runtime.config import CONFIG

    texts: dict[str, Any] = CONFIG.get()  # Pulumi hands over all values as texts, and objects as JSON
    values = {name: _parsed(text) for name, text in _own(texts, pulumi.get_stack()).items()}
    return load(values, pulumi.get_stack(), ROOT, _gcp(texts))


def without_secrets(text: str) -> str:
    """An error of the running program without the values of secret keys: a job's log and a review show it to all."""
    from pulumi.runtime.config import CONFIG, is_config_secret

    values = [_parsed(value) for name, value in CONFIG.get().items() if is_config_secret(name)]
    hidden = {leaf: "[secret]" for value in values for leaf in masking.leaves(value)}
    return masking.masker(hidden)(text)


def secret_keys(root: Path = ROOT) -> list[str]:
    """Which settings of the running program are secret, as paths; a whole key if its file does not say which part."""
    import pulumi
    from pulumi.runtime.config import CONFIG, is_config_secret

    names = sorted(
        name.removeprefix(f"{PROJECT}:") for name in CONFIG.get() if is_config_secret(name) and name.startswith(PROJECT)
    )
    try:
        values = _own(_settings(pulumi.get_stack(), root), pulumi.get_stack()) if names else {}
    except ConfigError:  # the CLI was given another file
        values = {}
    return [path for name in names for path in (list(_secure(values.get(name), name)) or [name])]


def _secure(value: Any, path: str) -> Iterator[str]:
    """Where a stack file has an encrypted value; a list as a whole."""
    if isinstance(value, dict) and set(value) == {"secure"}:
        yield path
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _secure(item, f"{path}.{key}")
    elif isinstance(value, list) and any(list(_secure(item, path)) for item in value):
        yield path


def _parsed(text: str) -> Any:
    """As Pulumi means it: `pulumi config set` and `stack init` write plain values in quotes, launch: "1"."""
    try:
        return json.loads(text)
    except ValueError:
        return text

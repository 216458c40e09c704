"""A run's settings in the stack file's words, and how two runs differ."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.contract.spec import Hardware, JobSpec, Role

# The key of trainingInput that names the machine type of a role.
TYPE_KEYS: dict[Role, str] = {"master": "masterType", "worker": "workerType", "ps": "parameterServerType"}


@dataclass(frozen=True)
class RunSetting:
    """One setting of a run."""

    section: str  # a key of the stack file
    key: str
    value: str
    default: bool  # whether it is the default


def settings(spec: JobSpec) -> list[RunSetting]:
    """Return the run's settings under the stack file's keys, in its order."""
    run_settings = []

    def add(section: str, key: str, value: Any, default: Any) -> None:
        run_settings.append(RunSetting(section, key, written(value), value == default))

    for role, hardware in spec.hardware.items():
        add("trainingInput", TYPE_KEYS[role], describe(hardware), None)
    add("trainingInput", "workerCount", spec.cluster.workers, None)
    add("trainingInput", "parameterServerCount", spec.cluster.parameter_servers, None)
    add("trainingInput", "minWorkers", spec.cluster.min_workers, 0)
    sections = {
        "trainingInput.hyperparameters": spec.hyperparameters,
        "model": spec.model,
        "data": spec.data,
        "parallel": spec.parallel,
        "evaluation": spec.evaluation,
        "checkpoints": spec.checkpoints,
    }
    for section, part in sections.items():
        for name, field in type(part).model_fields.items():
            value = getattr(part, name)
            if (section, name) == ("parallel", "processes"):  # on GPUs the job says them, not the stack file
                add(section, name, spec.cluster.processes, 1)
            elif value is not None:
                shown = Path(value).name if (section, name) == ("data", "path") else value
                add(section, field.alias or name, shown, field.default)
    return run_settings


def changes(spec: JobSpec, other_spec: JobSpec) -> str:
    """Return the settings in which the run `other_spec` differs from the run `spec`, with its values."""
    ours = {(s.section, s.key): s.value for s in settings(spec)}
    theirs = {(s.section, s.key): s.value for s in settings(other_spec)}
    differences = []
    for section, key in {**ours, **theirs}:
        value = theirs.get((section, key), "–")
        if ours.get((section, key), "–") != value:
            short = key if section.startswith("trainingInput") else f"{section}.{key}"
            differences.append(f"{short} {value}")
    if spec.fingerprint != other_spec.fingerprint:
        differences.append("other text")
    if spec.code != other_spec.code:
        differences.append("other code")
    return ", ".join(differences)


def describe(hardware: Hardware) -> str:
    """Return a machine in words, such as `n1-highmem-16 + 1 × nvidia-tesla-t4, Spot`."""
    gpus = f" + {hardware.accelerators} × {hardware.accelerator}" if hardware.accelerators else ""
    return hardware.machine_type + gpus + (", Spot" if hardware.spot else "")


def written(value: object) -> str:
    """Return a value as a person would write it into a stack file."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:g}" if isinstance(value, float) else str(value)

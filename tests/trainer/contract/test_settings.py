"""trainer.contract.settings: a run's settings in the stack file's words."""

from typing import Any

from trainer.contract.settings import changes, settings
from trainer.contract.spec import JobSpec


def job(**cluster: Any) -> JobSpec:
    fields: dict[str, Any] = {"run": "r", "model": {"size": "gpt2"}, "data": {"path": "text.txt", "tokenizer": "byte"}}
    return JobSpec.model_validate(
        {**fields, "fingerprint": "f", "code": "c", "hyperparameters": {}, "cluster": cluster}
    )


def test_settings_name_the_processes_of_a_trainer_also_where_its_gpus_decide_them() -> None:
    (processes,) = [line for line in settings(job(processes=8, gpus=8)) if line.key == "processes"]
    assert (processes.section, processes.value, processes.default) == ("parallel", "8", False)
    (alone,) = [line for line in settings(job()) if line.key == "processes"]
    assert (alone.value, alone.default) == ("1", True)
    assert changes(job(), job(processes=8, gpus=8)) == "parallel.processes 8"

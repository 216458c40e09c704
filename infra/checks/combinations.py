"""Find keys of a stack file that are legal alone and cannot be combined."""

from pydantic.alias_generators import to_camel

from infra.stack.keys import GOOGLE_ONLY, TIERS, StackFile, data_format
from trainer.contract import options, search_space


def combination_problems(file: StackFile) -> list[str]:
    """Return values that cannot be combined on any platform, a line each that starts with the key."""
    problems = []
    training, parameters = file.training_input, file.training_input.hyperparameters
    workers, servers = training.counts()
    if training.scale_tier in TIERS:
        given = {"worker_count": "workerCount", "parameter_server_count": "parameterServerCount"}
        if file.platform == "google":
            given |= {"master_type": "masterType", "worker_type": "workerType"}
            given |= {"parameter_server_type": "parameterServerType"}
        for name in given.keys() & training.model_fields_set:
            problems.append(
                f"trainingInput.{given[name]}: scaleTier {training.scale_tier} sets it; remove one, or use CUSTOM"
            )
    if parameters.batch_size < 1 + workers:
        problems.append(
            f"trainingInput.hyperparameters.batchSize: found {parameters.batch_size}, less than the {1 + workers}"
            f" trainers (master and {workers} workers); use at least {1 + workers}, or fewer workers"
        )
    if training.min_workers > workers:
        problems.append(
            f"trainingInput.minWorkers: found {training.min_workers}, more than the {workers} workers there will be;"
            f" use at most {workers}"
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
    if data_format(file.data) == "text":
        problems += [
            f"data.{to_camel(name)}: belongs to format pairs, and {file.data.path} is taken for text; remove it, or set"
            " data.format: pairs"
            for name in ("test_fraction", "skip_bad_lines")
            if name in file.data.model_fields_set
        ]
    task = file.evaluation.task
    if task is not None and (problem := options.format_problem(task, data_format(file.data))):
        if file.data.format is None and task != "text":  # the format was taken from the file's name
            problem += ", or set data.format: pairs"
        problems.append(problem)
    often, keep = file.checkpoints.every, file.checkpoints.keep_every
    if keep is not None and (problem := _multiple("checkpoints.keepEvery", keep, "checkpoints.every", often)):
        problems.append(problem)
    problems += _model_problems(file)
    problems += _parallel_problems(file, servers)
    if file.sweep is not None:
        problems += search_space.problems(file.sweep, parameters, 1 + workers, file.model.positions)
    if file.platform == "local":
        problems += [
            f"{to_camel(name)}: means something to platform google only; set platform: google, or remove it"
            for name in GOOGLE_ONLY
            if name in file.model_fields_set
        ]
    return problems


def _model_problems(file: StackFile) -> list[str]:
    """Return keys that go only with a checkpoint as the start, or only without one."""
    problems = []
    if file.data.tokenizer == "checkpoint" and file.model.initialize is None:
        problems.append("data.tokenizer: checkpoint needs model.initialize, or use train, gpt2 or byte")
    if file.data.tokenizer == "train" and file.model.initialize is not None:
        problems.append(
            "data.tokenizer: train makes a vocabulary that the checkpoint of model.initialize does not know; use"
            " checkpoint"
        )
    if file.model.lora is not None and file.model.initialize is None:
        problems.append(
            "model.lora: trains a few parameters beside those of a checkpoint, and there is none; set model.initialize"
            " instead of a size, or remove lora"
        )
    return problems


def _parallel_problems(file: StackFile, servers: int) -> list[str]:
    """Return what is wrong with the way in which trainers share the work."""
    parallel, problems = file.parallel, []
    if not servers and parallel.plan != "auto":
        problems.append(
            f"parallel.plan: found {parallel.plan}, and there are no parameter servers that it could mean; remove it,"
            " or set trainingInput.parameterServerCount to 1 or more"
        )
    if parallel.synchronization == "step":
        if parallel.every > 1:
            problems.append(
                f"parallel.every: found {parallel.every}, but trainers meet at every step; add synchronization: local,"
                " or remove it"
            )
        return problems
    if not servers:
        problems.append(
            "parallel.synchronization: local needs parameter servers, which hold what the trainers agree on, and there"
            " are none; set trainingInput.parameterServerCount to 1 or more, or use step"
        )
    if parallel.parallelism == "fsdp":
        problems.append(
            "parallel.synchronization: local keeps a whole copy of the parameters for each machine, and fsdp is for"
            " models of which no process has one; use step, or parallelism: replicas"
        )
    if parallel.every < 2:
        problems.append(
            "parallel.every: found 1, but with synchronization: local it is the steps from one meeting of the trainers"
            " to the next; use 2 or more, for example 16"
        )
    for key, value in (("evaluation.every", file.evaluation.every), ("checkpoints.every", file.checkpoints.every)):
        if problem := _multiple(key, value, "parallel.every", parallel.every):  # between meetings models differ
            problems.append(problem)
    if (optimizer := file.training_input.hyperparameters.optimizer) != "adamw":
        problems.append(
            f"trainingInput.hyperparameters.optimizer: found {optimizer}, but parallel.synchronization: local is for"
            " adamw; use adamw, or synchronization: step"
        )
    return problems


def _multiple(key: str, value: int, of: str, unit: int) -> str | None:
    """Return a problem if a number of steps is not a multiple of another."""
    if value % unit == 0:
        return None
    return f"{key}: found {value}, must be a multiple of {of}, {unit}; use {max(round(value / unit), 1) * unit}"

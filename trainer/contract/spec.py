"""JobSpec: the one contract between infra/ (which declares a run) and trainer/ (which carries it out).

`infra/` validates a stack file into these models and stores a JobSpec as `runs/<run>/job.json`; every machine
reads it back. Keys are camelCase in both files and snake_case in Python.
"""

import hashlib
from typing import Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel

Role = Literal["master", "worker", "ps"]
ROLES: tuple[Role, ...] = get_args(Role)
Task = Literal["text", "translation", "sentiment", "questions"]
# layers, heads, width of the published GPT-2 models (Radford et al. 2019), and one for a laptop.
SIZES: dict[str, tuple[int, int, int]] = {
    "tiny": (4, 4, 128),
    "gpt2": (12, 12, 768),
    "gpt2-medium": (24, 16, 1024),
    "gpt2-large": (36, 20, 1280),
    "gpt2-xl": (48, 25, 1600),
}
END_OF_TEXT = "<|endoftext|>"


class Strict(BaseModel):
    """A model that refuses unknown keys and does not change after it was read."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, alias_generator=to_camel, populate_by_name=True, allow_inf_nan=False
    )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values under camelCase keys; keys that hold their default of None are left out."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


class Lora(Strict):
    """Low-rank adaptation (Hu et al. 2021): small matrices are trained beside the checkpoint's, which stay."""

    rank: int = Field(8, ge=1, le=512)
    alpha: float = Field(16, gt=0)  # the matrices' product counts alpha / rank
    dropout: float = Field(0.0, ge=0, lt=1)


class Model(Strict):
    """Which network: a size by name, or explicit dimensions, or a checkpoint to start from."""

    size: Literal["tiny", "gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"] | None = None
    layers: int | None = Field(None, ge=1, le=200)
    heads: int | None = Field(None, ge=1, le=200)
    width: int | None = Field(None, ge=8, le=16384)
    positions: int = Field(1024, ge=8, le=65536)
    # a folder, a hub id, gs://… or a finished run's id; its own dimensions are used
    initialize: str | None = Field(None, min_length=1)
    lora: Lora | None = None

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        explicit = [self.layers, self.heads, self.width]
        ways = [self.size is not None, any(explicit), self.initialize is not None]
        if sum(ways) != 1:
            raise ValueError("give exactly one of: size, or layers + heads + width, or initialize")
        if any(explicit):
            if self.layers is None or self.heads is None or self.width is None:
                raise ValueError("layers, heads and width go together")
            if self.width % self.heads:
                raise ValueError(f"width {self.width} is not divisible by heads {self.heads}")
        return self

    def dimensions(self) -> tuple[int, int, int]:
        """(layers, heads, width). Raises ValueError for `initialize`: only the checkpoint knows."""
        if self.size is not None:
            return SIZES[self.size]
        if self.layers is None or self.heads is None or self.width is None:
            raise ValueError("the dimensions of a model that starts from a checkpoint stand in the checkpoint")
        return self.layers, self.heads, self.width

    @property
    def name(self) -> str:
        """Short and legal in file names and cloud labels, e.g. `gpt2-4x128`."""
        if self.size is not None:
            return "gpt2-tiny" if self.size == "tiny" else self.size
        if self.initialize is not None:
            tail = self.initialize.rstrip("/").rsplit("/", 1)[-1].lower()
            return "from-" + ("".join(c if c.isalnum() else "-" for c in tail).strip("-")[:20] or "checkpoint")
        return f"gpt2-{self.layers}x{self.width}"


class Data(Strict):
    """The text and how it becomes tokens."""

    path: str  # in a stack file: a file here; in job.json: the same text inside the bucket
    # pairs: JSON lines {"prompt", "completion"} (trainer/data/pairs.py). In a stack file None: pairs if the name ends
    # in .jsonl; job.json always says it.
    format: Literal["text", "pairs"] | None = None
    tokenizer: Literal["train", "gpt2", "byte", "checkpoint"] = "gpt2"
    vocabulary_size: int = Field(1024, ge=257, le=65536)  # of `tokenizer: train`, end-of-text included
    # of `gpt2`: a folder with its two files, instead of the hub; of `checkpoint`: where model.initialize points
    vocabulary_path: str | None = Field(None, min_length=1)
    validation_fraction: float = Field(0.05, gt=0, lt=0.5)  # text: its end is held out; pairs: those of some hashes
    # Of pairs.
    test_fraction: float = Field(0.1, gt=0, lt=0.5)  # neither trained nor validated on: what a run is evaluated on
    skip_bad_lines: int = Field(0, ge=0)  # so many may be left out

    def tokens_key(self) -> str:
        """Names the folder of token shards beside the text: what the tokens depend on, besides the text."""
        detail = ""
        if self.tokenizer == "train":
            detail = f"{self.vocabulary_size}-"
        elif self.tokenizer == "checkpoint":
            detail = hashlib.sha256((self.vocabulary_path or "").encode()).hexdigest()[:8] + "-"
        key = f"{self.tokenizer}-{detail}held-out-{self.validation_fraction:g}"
        return f"pairs-{key}-{self.test_fraction:g}-{self.skip_bad_lines}" if self.format == "pairs" else key


class Hyperparameters(Strict):
    """What is optimized and how. Defaults are nanoGPT's for GPT-2 unless said."""

    learning_rate: float = Field(6e-4, gt=0, le=10)
    batch_size: int = Field(32, ge=1)  # global, in sequences: the same whatever the number of trainers
    sequence_length: int = Field(1024, ge=8)
    steps: int = Field(1000, ge=1)
    optimizer: Literal["adamw", "sgd"] = "adamw"
    weight_decay: float = Field(0.1, ge=0)  # on matrices only; AdamW only
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.95, ge=0, lt=1)
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup_steps: int = Field(100, ge=0)
    final_fraction: float = Field(0.1, ge=0, le=1)  # cosine ends at this fraction of learningRate
    gradient_clip: float = Field(1.0, ge=0)  # global norm; 0 is off
    dropout: float = Field(0.0, ge=0, lt=1)
    seed: int = Field(1337, ge=0, lt=2**32)
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"  # auto: bf16 or fp16 where a GPU has it, fp32 on CPU
    compile: bool = False
    micro_batch_size: int | None = Field(None, ge=1)  # most sequences in one forward pass; default: chosen to fit


class Evaluation(Strict):
    task: Task | None = None  # of the finished model, on the test part (trainer/evaluation/evaluate.py)
    every: int = Field(100, ge=1)  # steps
    sequences: int = Field(256, ge=1)  # at most, from the start of the held-out part


def format_problem(task: Task, data_format: Literal["text", "pairs"]) -> str | None:
    """What to say of a task whose data is of the other format; starts with the key."""
    if (task == "text") == (data_format == "text"):
        return None
    fit = "text" if data_format == "text" else "translation, sentiment or questions"
    return f"evaluation.task: found {task}, and data.format is {data_format}; use {fit}, or remove it"


class Parameter(Strict):
    """One hyperparameter that a sweep varies, in the words of AI Platform's ParameterSpec."""

    parameter_name: str  # a key of trainingInput.hyperparameters
    type: Literal["DOUBLE", "INTEGER", "DISCRETE", "CATEGORICAL"]
    min_value: float | None = None
    max_value: float | None = None
    scale_type: Literal["UNIT_LINEAR_SCALE", "UNIT_LOG_SCALE", "UNIT_REVERSE_LOG_SCALE"] = "UNIT_LINEAR_SCALE"
    discrete_values: list[float] | None = None
    categorical_values: list[str] | None = None


class Sweep(Strict):
    """A run of many trials, in the words of AI Platform's HyperparameterSpec. One trial is trained after the other."""

    goal: Literal["MINIMIZE", "MAXIMIZE"] = "MINIMIZE"
    hyperparameter_metric_tag: Literal["validationLoss", "loss"] = "validationLoss"
    max_trials: int = Field(10, ge=1, le=1000)
    max_parallel_trials: int = Field(1, ge=1)
    enable_trial_early_stopping: bool = False  # of a trial that is worse than the median of those before it
    params: list[Parameter]


class Checkpoints(Strict):
    every: int = Field(250, ge=1)  # steps
    keep: int = Field(2, ge=1)  # the newest
    keep_every: int | None = Field(None, ge=1)  # also those whose step is a multiple of this, for ever


class Parallel(Strict):
    """How the trainers share a step's work."""

    parallelism: Literal["replicas", "fsdp"] = "replicas"  # fsdp: one machine, its GPUs hold a part of the model each
    # The rest is for parameter servers.
    plan: Literal["auto", "star", "hierarchical"] = "auto"  # auto: what the cost model says (exchange_cost.py)
    wire: Literal["fp32", "bf16"] = "fp32"  # how gradients and parameters travel; servers keep fp32
    synchronization: Literal["step", "local"] = "step"  # local: trainers go `every` steps alone, then meet
    every: int = Field(1, ge=1)  # steps between two meetings

    def meeting(self, step: int, steps: int) -> int:
        """How many steps from `step` to the next meeting, in a run of `steps`."""
        return min(self.every - step % self.every, steps - step)


class Cluster(Strict):
    """Who takes part. The master trains too: trainers = 1 + workers."""

    workers: int = Field(0, ge=0)
    min_workers: int = Field(0, ge=0)
    parameter_servers: int = Field(0, ge=0)
    threads: int = Field(1, ge=1)  # of each trainer process
    processes: int = Field(1, ge=1)  # of each trainer machine: one a GPU
    trainer_gbps: float | None = Field(None, gt=0)  # Gbit/s of a trainer's network; None is not known
    server_gbps: float | None = Field(None, gt=0)

    @property
    def trainers(self) -> int:
        return 1 + self.workers

    def machines(self) -> list[tuple[str, Role]]:
        """(name, role) of every machine, master first."""
        names: list[tuple[str, Role]] = [("master-0", "master")]
        names += [(f"worker-{i}", "worker") for i in range(self.workers)]
        names += [(f"ps-{i}", "ps") for i in range(self.parameter_servers)]
        return names


class Hardware(Strict):
    """A role's machines as they were declared on Google Cloud; the price is of one, disk included, when declared."""

    machine_type: str
    accelerator: str | None = None
    accelerators: int = Field(0, ge=0)  # of each machine
    spot: bool = False
    usd_per_hour: float | None = Field(None, ge=0)  # by the list; None is not known


class JobSpec(Strict):
    """A whole run. `run` names it; see run_id for what the name depends on."""

    run: str
    launch: int = Field(1, ge=1)
    model: Model
    data: Data
    fingerprint: str  # of the source text: fingerprint()
    code: str  # code_hash(), or the digest of a pinned image
    hyperparameters: Hyperparameters
    evaluation: Evaluation = Evaluation()
    checkpoints: Checkpoints = Checkpoints()
    parallel: Parallel = Parallel()
    cluster: Cluster = Cluster()
    sweep: Sweep | None = None
    hardware: dict[Role, Hardware] = {}  # none on this machine; changes nothing of the result

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.hyperparameters.sequence_length > self.model.positions:
            raise ValueError(
                f"sequenceLength {self.hyperparameters.sequence_length} is longer than the model's"
                f" {self.model.positions} positions"
            )
        return self

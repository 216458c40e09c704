"""Declare the options of a run, each with its bounds and its meaning: a stack file and job.json share these models.

Keys are camelCase in both files and snake_case in Python. `make schema` writes docs/reference.md from them.
"""

import hashlib
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel

Task = Literal["text", "translation", "sentiment", "questions"]
# Layers, heads and width of the published GPT-2 models (Radford et al. 2019), and one for a laptop.
SIZES: dict[str, tuple[int, int, int]] = {
    "tiny": (4, 4, 128),
    "gpt2": (12, 12, 768),
    "gpt2-medium": (24, 16, 1024),
    "gpt2-large": (36, 20, 1280),
    "gpt2-xl": (48, 25, 1600),
}
END_OF_TEXT = "<|endoftext|>"


class Strict(BaseModel):
    """A model that refuses unknown keys and cannot be changed."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, alias_generator=to_camel, populate_by_name=True, allow_inf_nan=False
    )

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values under camelCase keys, without keys that are None."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


class Lora(Strict):
    """Low-rank adaptation (Hu et al. 2021): train small matrices beside the checkpoint's, which stay as they are."""

    rank: int = Field(
        8,
        ge=1,
        le=512,
        description="The rank of the two small matrices that are trained beside each of a layer's four. A higher rank"
        " can learn more and takes more memory.",
    )
    alpha: float = Field(16, gt=0, description="The product of the two matrices is scaled by alpha / rank.")
    dropout: float = Field(
        0.0, ge=0, lt=1, description="The fraction of the matrices' inputs that is set to zero at random in training."
    )


class Model(Strict):
    """The network: a size by name, or explicit dimensions, or a checkpoint to start from."""

    size: Literal["tiny", "gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"] | None = Field(
        None,
        description="A published GPT-2 size, from 124 million parameters (gpt2) to 1.5 billion (gpt2-xl); or tiny, 4"
        " layers of width 128, for a laptop. Give either size, or layers, heads and width, or initialize.",
    )
    layers: int | None = Field(None, ge=1, le=200, description="The number of transformer blocks.")
    heads: int | None = Field(
        None, ge=1, le=200, description="The attention heads of each block. The width must be divisible by them."
    )
    width: int | None = Field(
        None, ge=8, le=16384, description="The length of the vector that stands for a token inside the network."
    )
    positions: int = Field(
        1024,
        ge=8,
        le=65536,
        description="The longest sequence that the network can read, in tokens. The default is GPT-2's.",
    )
    initialize: str | None = Field(
        None,
        min_length=1,
        description="The checkpoint to start from: a folder, a hub id such as openai-community/gpt2, a gs:// address,"
        " or the id of a finished run. The model has the checkpoint's dimensions.",
    )
    lora: Lora | None = Field(
        None,
        description="Train low-rank matrices beside the checkpoint of initialize instead of all its parameters. Write"
        " {} for the defaults.",
    )

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
        """Return layers, heads and width. Raise ValueError for `initialize`: only the checkpoint has them."""
        if self.size is not None:
            return SIZES[self.size]
        if self.layers is None or self.heads is None or self.width is None:
            raise ValueError("the dimensions of a model that starts from a checkpoint are in the checkpoint")
        return self.layers, self.heads, self.width

    @property
    def name(self) -> str:
        """A short name that is legal in file names and cloud labels, such as `gpt2-4x128`."""
        if self.size is not None:
            return "gpt2-tiny" if self.size == "tiny" else self.size
        if self.initialize is not None:
            tail = self.initialize.rstrip("/").rsplit("/", 1)[-1].lower()
            return "from-" + ("".join(c if c.isalnum() else "-" for c in tail).strip("-")[:20] or "checkpoint")
        return f"gpt2-{self.layers}x{self.width}"


class Data(Strict):
    """The text and how it becomes tokens.

    In job.json `path` is the same text inside the bucket, `format` is always given, and `vocabulary_path` is the
    checkpoint of model.initialize if the tokenizer is that checkpoint's.
    """

    path: str = Field(
        description="The file with the text or the pairs, relative to the stack file. On Google Cloud a lock file"
        " PATH.lock.json, written by scripts.upload_data, may stand for it."
    )
    format: Literal["text", "pairs"] | None = Field(
        None,
        description="What the file is: text, or pairs, one JSON object with prompt and completion a line. By default"
        " a file whose name ends in .jsonl has pairs.",
    )
    tokenizer: Literal["train", "gpt2", "byte", "checkpoint"] = Field(
        "gpt2",
        description="How text becomes tokens: train learns a byte-level BPE from this text, gpt2 is GPT-2's own, byte"
        " makes each byte a token, and checkpoint takes the tokenizer of model.initialize.",
    )
    vocabulary_size: int = Field(
        1024,
        ge=257,
        le=65536,
        description="The number of tokens that the tokenizer train learns, end-of-text included. The others have"
        " their own number.",
    )
    vocabulary_path: str | None = Field(
        None,
        min_length=1,
        description="A folder with GPT-2's vocab.json and merges.txt for the tokenizer gpt2, instead of the hub.",
    )
    validation_fraction: float = Field(
        0.05,
        gt=0,
        lt=0.5,
        description="The fraction that is not trained on and tells how good the model is: the end of a text, or pairs"
        " chosen by a hash of their prompts.",
    )
    test_fraction: float = Field(
        0.1,
        gt=0,
        lt=0.5,
        description="Pairs only: the fraction that is neither trained nor validated on. evaluation.task measures the"
        " finished model on it.",
    )
    skip_bad_lines: int = Field(
        0, ge=0, description="Pairs only: the most lines that may be left out because they are no valid pair."
    )

    def tokens_key(self) -> str:
        """Return the name of the token shards' folder: everything that the tokens depend on, besides the text."""
        detail = ""
        if self.tokenizer == "train":
            detail = f"{self.vocabulary_size}-"
        elif self.tokenizer == "checkpoint":
            detail = hashlib.sha256((self.vocabulary_path or "").encode()).hexdigest()[:8] + "-"
        key = f"{self.tokenizer}-{detail}held-out-{self.validation_fraction:g}"
        return f"pairs-{key}-{self.test_fraction:g}-{self.skip_bad_lines}" if self.format == "pairs" else key


class Hyperparameters(Strict):
    """The optimization of the loss. Defaults are nanoGPT's for GPT-2, unless a description gives another reason."""

    learning_rate: float = Field(
        6e-4, gt=0, le=10, description="The highest learning rate, reached at the end of the warm-up."
    )
    batch_size: int = Field(
        32,
        ge=1,
        description="Sequences in a step, of all trainers together: more trainers do not change the result.",
    )
    sequence_length: int = Field(1024, ge=8, description="Tokens in a sequence, at most model.positions.")
    steps: int = Field(1000, ge=1, description="Optimizer steps of the whole run.")
    optimizer: Literal["adamw", "sgd"] = Field(
        "adamw", description="AdamW, or plain stochastic gradient descent without momentum."
    )
    weight_decay: float = Field(0.1, ge=0, description="AdamW's weight decay, applied to matrices only.")
    beta1: float = Field(0.9, ge=0, lt=1, description="AdamW's decay rate for the mean of gradients.")
    beta2: float = Field(0.95, ge=0, lt=1, description="AdamW's decay rate for the mean of squared gradients.")
    schedule: Literal["cosine", "constant"] = Field(
        "cosine",
        description="How the learning rate continues after the warm-up: it falls along a cosine to finalFraction of"
        " itself, or stays constant.",
    )
    warmup_steps: int = Field(
        100, ge=0, description="Steps in which the learning rate rises linearly from zero; at most steps."
    )
    final_fraction: float = Field(
        0.1, ge=0, le=1, description="The fraction of learningRate at which the schedule cosine ends."
    )
    gradient_clip: float = Field(
        1.0, ge=0, description="The largest global norm of a gradient; a larger one is scaled down. 0 clips nothing."
    )
    dropout: float = Field(
        0.0, ge=0, lt=1, description="The fraction of activations that is set to zero at random in training."
    )
    seed: int = Field(
        1337, ge=0, lt=2**32, description="The seed of the initial parameters, of the batches' order and of dropout."
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto",
        description="The number format of the computation; parameters stay fp32. auto takes bf16 or fp16 if the GPU"
        " has it, and fp32 on CPUs.",
    )
    compile: bool = Field(
        False,
        description="Compile the model with torch.compile: steps get faster, and the start takes up to minutes longer.",
    )
    micro_batch_size: int | None = Field(
        None,
        ge=1,
        description="The most sequences in one forward pass. It changes memory and speed, not the result; by default"
        " as many as fit.",
    )
    recompute: Literal["none", "attention", "block"] = Field(
        "none",
        description="The activations that the backward pass computes again instead of keeping them: none, those of each"
        " attention, or those of each transformer block, which saves most memory and takes up to a third longer. The"
        " result is the same.",
    )


class Evaluation(Strict):
    """The measurements of the model: how often, and on which data."""

    task: Task | None = Field(
        None,
        description="Measure the finished model at this task, on the test part of the data: text has perplexity;"
        " translation, sentiment and questions need pairs.",
    )
    every: int = Field(100, ge=1, description="Steps from one validation loss to the next.")
    sequences: int = Field(
        256, ge=1, description="The most sequences of a validation loss, from the start of the held-out part."
    )


def format_problem(task: Task, data_format: Literal["text", "pairs"]) -> str | None:
    """Return the error for a task whose data has the other format, starting with the key; None if they fit."""
    if (task == "text") == (data_format == "text"):
        return None
    fit = "text" if data_format == "text" else "translation, sentiment or questions"
    return f"evaluation.task: found {task}, and data.format is {data_format}; use {fit}, or remove it"


class Checkpoints(Strict):
    """The checkpoints of a run: how often it is saved, and how many of them stay."""

    every: int = Field(
        250, ge=1, description="Steps from one checkpoint to the next: the most work that a lost run repeats."
    )
    keep: int = Field(2, ge=1, description="The number of newest checkpoints that stay.")
    keep_every: int | None = Field(
        None,
        ge=1,
        description="Also keep, for ever, the checkpoints whose step is a multiple of this. It must be a multiple of"
        " every.",
    )


class Parallel(Strict):
    """The way in which the trainers share a step's work. All but `parallelism` is about parameter servers."""

    parallelism: Literal["replicas", "fsdp"] = Field(
        "replicas",
        description="replicas: each GPU has the whole model. fsdp: the GPUs of a machine share it, each with a part,"
        " for a model that does not fit in one.",
    )
    processes: int | None = Field(
        None,
        ge=1,
        le=64,
        description="The processes of each trainer machine, where it computes on its CPU; by default one. A machine"
        " with GPUs has one for each GPU.",
    )
    plan: Literal["auto", "star", "hierarchical"] = Field(
        "auto",
        description="How gradients reach the parameter servers: each trainer sends to all servers (star), or trainers"
        " first add up among themselves (hierarchical). auto takes the faster one by the cost model.",
    )
    wire: Literal["fp32", "bf16"] = Field(
        "fp32",
        description="The number format in which gradients and parameters travel between machines. bf16"
        " halves the traffic; what is kept stays fp32.",
    )
    synchronization: Literal["step", "local"] = Field(
        "step",
        description="step: trainers meet at the parameter servers at every step. local: each takes `every` AdamW steps"
        " alone, and the servers apply momentum to the mean of what was learned (DiLoCo).",
    )
    every: int = Field(
        1, ge=1, description="Steps from one meeting of the trainers to the next, with synchronization: local."
    )

    def meeting(self, step: int, steps: int) -> int:
        """Return the number of steps from `step` to the next meeting, in a run of `steps`."""
        return min(self.every - step % self.every, steps - step)

"""GPT-2 as transformers' GPT2LMHeadModel, its parameters as one flat vector, and its loss.

The model is the library's, so that every GPT-2 checkpoint loads here and every export loads anywhere. What is
ours is how it is called: no cache, no dropout modules in the way, no full fp32 logit tensor.
"""

import contextlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from tokenizers import Tokenizer
from torch import Tensor
from transformers import AttentionInterface, GPT2Config, GPT2LMHeadModel
from transformers.utils import logging

from trainer import lora
from trainer import manifest as manifests
from trainer import tokenizer as vocabularies
from trainer.layout import Layout, padded, total
from trainer.prepared import cache_folder
from trainer.spec import InputError, Model
from trainer.storage import Storage, open_storage

# GPT-2's activation is the tanh approximation of GELU. transformers computes "gelu_new" in five operations and
# "gelu_pytorch_tanh", the same function, in one: 20 to 40 % faster on CPU. We train with one and export the other.
TRAINED_ACTIVATION, EXPORTED_ACTIVATION = "gelu_pytorch_tanh", "gelu_new"
ATTENTION = "gpt2_training_causal"
ALIGNMENT = 64  # of the table of tokens, in rows
CHUNK = 4096  # tokens whose logits exist at one time
RUN_MODEL = re.compile(r"runs/.+/model")  # in a bucket
FEW = 8  # runs named in an error


def _causal_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Scaled dot-product attention that is told to be causal, for transformers' AttentionInterface.

    The library's own "sdpa" makes a mask tensor under torch.compile, in case sequences are packed; ours never are, and
    with a mask the flash kernels are out of reach.
    """
    assert attention_mask is None
    result = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=True, scale=scaling)
    return result.transpose(1, 2).contiguous(), None


AttentionInterface.register(ATTENTION, _causal_attention)


def build(spec: Model, tokenizer: Tokenizer, dropout: float, seed: int) -> GPT2LMHeadModel:
    """A model on the CPU in fp32: from its dimensions and the seed, or from a checkpoint.

    A new model's table of tokens is padded to a multiple of 64 for speed, and export cuts the padding off. With LoRA,
    only its matrices need gradients.
    Raises InputError if a checkpoint cannot be had or does not fit.
    """
    vocabulary, end = tokenizer.get_vocab_size(), vocabularies.end_of_text(tokenizer)
    if spec.initialize is not None:
        model = _from_checkpoint(spec.initialize, tokenizer, dropout)
        return model if spec.lora is None else lora.adapt(model, spec.lora, seed)
    layers, heads, width = spec.dimensions()
    config = GPT2Config(
        vocab_size=-(-vocabulary // ALIGNMENT) * ALIGNMENT,
        n_positions=spec.positions,
        n_embd=width,
        n_layer=layers,
        n_head=heads,
        bos_token_id=end,
        eos_token_id=end,
    )
    _train_settings(config, dropout)
    torch.manual_seed(seed)
    return GPT2LMHeadModel(config)


def _train_settings(config: GPT2Config, dropout: float) -> None:
    config.activation_function = TRAINED_ACTIVATION
    config.resid_pdrop = config.embd_pdrop = config.attn_pdrop = dropout
    config._attn_implementation = ATTENTION
    config.use_cache = False


def _from_checkpoint(source: str, tokenizer: Tokenizer, dropout: float) -> GPT2LMHeadModel:
    """A folder, a gs:// folder or a hub id; weights from safetensors alone, so that loading runs no code."""
    folder, vocabulary = fetch_folder(source), tokenizer.get_vocab_size()
    try:
        config = GPT2Config.from_pretrained(folder)
        if config.model_type != "gpt2":
            raise InputError(f"model.initialize: {source} is a {config.model_type} model; only GPT-2 can be trained")
        if config.activation_function not in (TRAINED_ACTIVATION, EXPORTED_ACTIVATION):
            raise InputError(
                f"model.initialize: {source} has the activation {config.activation_function};"
                f" only GPT-2's, {EXPORTED_ACTIVATION}, can be trained"
            )
        if config.vocab_size < vocabulary:
            raise InputError(
                f"model.initialize: {source} knows {config.vocab_size} tokens, the tokenizer has {vocabulary};"
                " set data.tokenizer to checkpoint"
            )
        own = Path(folder) / "tokenizer.json"
        if own.is_file():
            known = vocabularies.parse(own.read_text(encoding="utf-8"), f"model.initialize: {source}").get_vocab()
            if tokenizer.get_vocab().items() - known.items():  # it may know some more
                raise InputError(
                    f"model.initialize: {source} has other tokens than the tokenizer, be they as many; set"
                    " data.tokenizer to checkpoint"
                )
        _train_settings(config, dropout)
        verbosity = logging.get_verbosity()
        logging.disable_progress_bar()
        logging.set_verbosity_error()  # what does not fit is said below, in one line instead of a table
        try:
            model, found = GPT2LMHeadModel.from_pretrained(
                folder,
                config=config,
                use_safetensors=True,
                dtype=torch.float32,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
        finally:
            logging.set_verbosity(verbosity)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise InputError(
            f"model.initialize: cannot load {source} ({first_line(error)}); give a folder, a hub id or gs://…"
        ) from error
    # transformers would fill these with random numbers.
    unfit = sorted({*found["missing_keys"], *(name for name, *_ in found["mismatched_keys"])})
    if unfit:
        raise InputError(
            f"model.initialize: the weights of {source} do not fit its config.json ({len(unfit)} are missing or of"
            f" another size, such as {unfit[0]}); fetch it again"
        )
    return model


def fetch_folder(source: str) -> str:
    """`source` itself if it is a folder or a hub id; a gs:// folder is downloaded to the cache first.

    Raises InputError if it is not there, or is a run's model that is not whole.
    """
    if not source.startswith("gs://"):
        folder = Path(source).expanduser()
        if folder.is_dir() or source.startswith(("/", ".", "~")):
            if not (folder / "config.json").is_file():  # transformers would take GPT-2's own dimensions for granted
                raise InputError(f"model.initialize: {source} has no config.json; give a checkpoint's folder")
            return str(folder)
        return source
    bucket, _, prefix = source.removeprefix("gs://").partition("/")
    storage, target = open_storage(f"gs://{bucket}"), cache_folder() / "models" / bucket / prefix
    entries = storage.list(prefix)
    if not entries:
        raise InputError(f"model.initialize: nothing lies at {source}; {_others(storage, prefix)}")
    for entry in entries:
        storage.download(entry.path, target / entry.path[len(prefix) :].lstrip("/"))
    # Written last: what a run exports is there with it.
    if RUN_MODEL.fullmatch(prefix.rstrip("/")) and (wrong := manifests.verify_manifest(target)):
        raise InputError(f"model.initialize: the model at {source} is not whole ({wrong[0]}); wait for its run to end")
    return str(target)


def _others(storage: Storage, prefix: str) -> str:
    """What to do if a run's model is not there: the finished runs beside it, if any."""
    if not RUN_MODEL.fullmatch(prefix.rstrip("/")):
        return "give the address of a checkpoint's folder"
    ending = f"/model/{manifests.NAME}"
    runs = [e.path.removeprefix("runs/").removesuffix(ending) for e in storage.list("runs") if e.path.endswith(ending)]
    return f"finished runs there: {', '.join(runs[-FEW:]) or 'none'}"


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def layout_of(model: GPT2LMHeadModel) -> Layout:
    """Where each tensor lies in a flat vector of all trained parameters; matrices and embeddings decay."""
    layout, end = [], 0
    for name, parameter in reversed(list(model.named_parameters())):  # tied weights appear once
        if not parameter.requires_grad:
            continue
        layout.append((name, end, parameter.numel(), parameter.dim() >= 2))
        end += padded(parameter.numel())
    return layout


class Flat:
    """All trained parameters as views of one vector, and their gradients as views of another.

    Order: reverse of the forward pass, so that gradients get ready from the front. Each tensor starts at a multiple
    of 64 elements. One vector is what members send each other, what a checkpoint holds, and what parameter servers
    cut into shards.
    """

    def __init__(self, model: GPT2LMHeadModel, device: torch.device) -> None:
        self.model = model
        self.layout = layout_of(model)
        parameters = dict(model.named_parameters())
        self.parameters = torch.zeros(total(self.layout), device=device)
        self.gradients = torch.zeros_like(self.parameters)
        for name, start, size, _ in self.layout:
            parameter = parameters[name]
            shape = parameter.shape
            view = self.parameters[start : start + size].view(shape)
            view.copy_(parameter.data)
            parameter.data = view
            parameter.grad = self.gradients[start : start + size].view(shape)


Loss = Callable[[Tensor, Tensor, float], Tensor]


class _HeadLoss(torch.autograd.Function):
    """The head and its cross-entropy in one: the gradient is made with the loss, CHUNK tokens at a time.

    So the logits exist once, in a chunk, and never for a backward pass: 16 x 1024 tokens of GPT-2 would be 3.3 GB. On
    CPU it also saves the two slowest operations after the matrix products (docs/performance.md).
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, scale: float) -> Tensor:
        differentiate, trained = ctx.needs_input_grad[:2]  # LoRA leaves the weight as it is
        total = torch.zeros((), device=hidden.device)
        hidden_parts, weight_gradient = [], None
        for part, wanted in zip(torch.split(hidden, CHUNK), torch.split(targets, CHUNK), strict=True):
            wanted = wanted.unsqueeze(1)
            logs = F.log_softmax(F.linear(part, weight).float(), dim=1)
            total = total - logs.gather(1, wanted).sum()
            if differentiate:  # d loss / d logits = softmax - one-hot
                gradient = logs.exp_().scatter_add_(1, wanted, torch.full_like(wanted, -1, dtype=logs.dtype))
                if scale != 1.0:
                    gradient = gradient.mul_(scale)
                hidden_parts.append((gradient @ weight).to(hidden.dtype))
                if trained:
                    product = (gradient.T @ part).to(weight.dtype)
                    weight_gradient = product if weight_gradient is None else weight_gradient.add_(product)
        if differentiate:
            whole = hidden_parts[0] if len(hidden_parts) == 1 else torch.cat(hidden_parts)
            ctx.save_for_backward(whole, weight_gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *outputs: Any) -> tuple[Tensor, Tensor | None, None, None]:
        hidden_gradient, weight_gradient = ctx.saved_tensors
        for_weight = None if weight_gradient is None else weight_gradient * outputs[0]
        return hidden_gradient * outputs[0], for_weight, None, None


def make_loss(
    model: GPT2LMHeadModel, autocast: torch.dtype | None, device: torch.device, *, masked: bool = False
) -> Loss:
    """(inputs, targets, scale), both int64 [rows, T], -> the summed cross-entropy in nats, a scalar.

    masked: some targets are negative and do not count (trainer.batches.IGNORED).

    A sum, not a mean: sums of micro-batches add up, whoever computed them. `scale` multiplies its gradient, not itself.
    """
    transformer, weight = model.transformer, model.lm_head.weight

    def loss(inputs: Tensor, targets: Tensor, scale: float = 1.0) -> Tensor:
        with torch.autocast(device.type, dtype=autocast) if autocast else contextlib.nullcontext():
            hidden = transformer(inputs, use_cache=False).last_hidden_state.flatten(0, 1)
            wanted = targets.flatten()
            if masked:  # before the head, which is a large part of the work
                counted = wanted >= 0
                hidden, wanted = hidden[counted], wanted[counted]
            result: Tensor = _HeadLoss.apply(hidden, weight, wanted, scale)
            return result

    return loss


def compiled(loss: Loss, log: Callable[[str], None], *, dynamic: bool = False) -> Loss:
    """`loss` through torch.compile; if compiling fails, it says so once and goes on eagerly.

    dynamic: the shapes of its tensors vary from call to call.
    """
    chosen: Loss | None = None

    def call(inputs: Tensor, targets: Tensor, scale: float = 1.0) -> Tensor:
        nonlocal chosen
        if chosen is None:
            try:
                fast: Loss = torch.compile(loss, dynamic=dynamic)
                result = fast(inputs, targets, scale)
                chosen = fast
                return result
            except Exception as error:  # any compiler failure: a missing g++, an unsupported GPU, a bug
                log(f"torch.compile failed ({first_line(error)}); going on without it")
                chosen = loss
        return chosen(inputs, targets, scale)

    return call

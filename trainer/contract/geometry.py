"""The arithmetic of a GPT-2 run: parameters, FLOPs, padding, micro-batches."""

from dataclasses import dataclass

from trainer.contract import spec

ROWS = 64  # the table of tokens is padded to a multiple of it
PIECE_TOKENS = 16384  # of a micro-batch, unless microBatchSize says otherwise
CHUNK = 4096  # tokens whose logits exist at one time


@dataclass(frozen=True)
class Dimensions:
    layers: int
    width: int
    positions: int
    vocabulary: int  # padded

    @property
    def parameters(self) -> int:
        """Weights and biases of attention (4·E² + 4·E), MLP (8·E² + 5·E) and norms (4·E) a layer; embeddings; norm."""
        layer = 12 * self.width**2 + 13 * self.width
        return self.layers * layer + (self.vocabulary + self.positions + 2) * self.width

    def flops_a_token(self, sequence_length: int) -> float:
        """6·N + 12·L·H·Q·T, forward and backward (Chowdhery et al. 2022), N without the table of positions."""
        attention = 12 * self.layers * self.width * sequence_length
        return 6 * (self.parameters - self.positions * self.width) + attention


@dataclass(frozen=True)
class Share:
    """What the busiest trainer computes of a step."""

    rows: int  # sequences of a micro-batch, at most
    passes: int  # micro-batches
    length: int  # tokens of a sequence

    @property
    def tokens(self) -> int:
        return self.rows * self.passes * self.length


def share(hyper: spec.Hyperparameters, trainers: int) -> Share:
    """trainers: processes that compute; a batch is cut for those that are declared (trainer/data/batches.py)."""
    most = hyper.micro_batch_size or max(1, PIECE_TOKENS // hyper.sequence_length)
    count = min(hyper.batch_size, trainers * -(-hyper.batch_size // (most * trainers)))
    return Share(-(-hyper.batch_size // count), -(-count // trainers), hyper.sequence_length)


CHUNK = 4096  # tokens whose logits exist at one time

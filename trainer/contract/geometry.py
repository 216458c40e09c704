"""The arithmetic of a GPT-2 run: parameters, FLOPs, padding, micro-batches, and what GPUs reach at best."""

from dataclasses import dataclass

from trainer.contract import options

VOCABULARY_MULTIPLE = 64  # rows: the table of tokens is padded to a multiple of it, for speed
MICRO_BATCH_TOKENS = 16384  # at most, unless microBatchSize says otherwise
LOGIT_CHUNK = 4096  # tokens whose logits exist at one time


@dataclass(frozen=True)
class PeakSpeed:
    """Dense TFLOP/s of a GPU."""

    half: float  # bf16 or fp16
    single: float  # fp32, which is TF32 where the GPU has it


# By words of the GPU's name: NVIDIA's data sheets, dense, with fp32 accumulation. Llm.c's mfu.h, torchtitan and public
# tables of data sheets were compared. A longer name comes before a shorter one that is a part of it.
PEAKS = {
    "GB200": PeakSpeed(2500, 1250),
    "B200": PeakSpeed(2250, 1125),
    "RTX PRO 6000": PeakSpeed(500, 250),
    "GH200": PeakSpeed(989, 494),
    "H200 NVL": PeakSpeed(835, 417),
    "H200": PeakSpeed(989, 494),
    "H100 NVL": PeakSpeed(835, 417),
    "H100 PCIe": PeakSpeed(756, 378),
    "H100": PeakSpeed(989, 494),
    "A100": PeakSpeed(312, 156),
    "A40": PeakSpeed(149.7, 74.8),
    "A30": PeakSpeed(165, 82),
    "A10G": PeakSpeed(70, 35),
    "A10": PeakSpeed(125, 62.5),
    "L40S": PeakSpeed(362, 183),
    "L40": PeakSpeed(181, 90.5),
    "L4": PeakSpeed(121, 60),
    "RTX 6000 Ada": PeakSpeed(364, 182),
    "RTX A6000": PeakSpeed(154.8, 77.4),
    "RTX 5090": PeakSpeed(209.5, 104.8),
    "RTX 4090": PeakSpeed(165.2, 82.6),
    "RTX 3090": PeakSpeed(71, 35.6),
    "V100 PCIE": PeakSpeed(112, 14),
    "V100": PeakSpeed(125, 15.7),
    "T4": PeakSpeed(65, 8.1),
}
PARTIAL = {"MIG", "Laptop"}  # words of devices that are a slice of a GPU, or less than their name says


def peak_name(device: str) -> str | None:
    """Return the name in PEAKS of a device, as torch names it; None where its peak is not known."""
    words = set(device.replace("-", " ").split())
    if words & PARTIAL:
        return None
    return next((name for name in PEAKS if words.issuperset(name.split())), None)


def padded_vocabulary(tokens: int) -> int:
    """Return how many rows a new model's table of tokens has."""
    return -(-tokens // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE


def flops_a_token(parameters: int, layers: int, width: int, sequence_length: int) -> int:
    """Return 6·N + 12·L·T·E, forward and backward (Chowdhery et al. 2022).

    Args:
        parameters: N, without the table of positions, as nanoGPT counts.
        layers: L.
        width: E.
        sequence_length: T, in tokens.
    """
    return 6 * parameters + 12 * layers * width * sequence_length


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

    def flops_a_token(self, sequence_length: int) -> int:
        """Return the FLOPs of a token, forward and backward."""
        return flops_a_token(self.parameters - self.positions * self.width, self.layers, self.width, sequence_length)

    def recomputed_flops_a_token(self, recompute: str, sequence_length: int) -> int:
        """Return the FLOPs that the backward pass computes again, a token. What comes last in it needs no repetition.

        Args:
            recompute: the hyperparameter.
            sequence_length: T, in tokens.
        """
        weights = {"none": 0, "attention": 3, "block": 8}[recompute] * self.width**2  # of 12 in a layer
        scores = 4 * sequence_length * self.width if recompute != "none" else 0
        return self.layers * (2 * weights + scores)


@dataclass(frozen=True)
class Share:
    """The part of a step that the busiest process computes."""

    rows: int  # sequences of a micro-batch, at most
    passes: int  # micro-batches
    length: int  # tokens of a sequence
    sequences: int  # those of all its micro-batches, which may differ by one sequence

    @property
    def tokens(self) -> int:
        return self.sequences * self.length


def micro_batch_rows(sequence_length: int, most: int | None = None) -> int:
    """Return how many sequences a micro-batch has at most: `most`, or as many as MICRO_BATCH_TOKENS allow."""
    return most or max(1, MICRO_BATCH_TOKENS // sequence_length)


def piece_rows(hyper: options.Hyperparameters, processes: int) -> int:
    """Return how many sequences each piece of a batch has with dropout, which draws its numbers once a piece.

    Only what is declared counts, so that the result does not depend on the processes that are present or on the memory
    of a GPU. A piece is at most a quarter of a process's part, so that a missing process costs the others little.
    """
    quarter = max(1, -(-hyper.batch_size // processes) // 4)
    return min(quarter, micro_batch_rows(hyper.sequence_length, hyper.micro_batch_size))


def share(hyper: options.Hyperparameters, processes: int, fitting: int | None = None) -> Share:
    """Return the busiest process's part of a step.

    A batch's sequences are dealt one by one, and what a process has is cut evenly into micro-batches. With dropout,
    pieces of a fixed size are dealt.

    Args:
        hyper: the batch; its microBatchSize, if given, bounds a micro-batch.
        processes: those that compute.
        fitting: the sequences of a micro-batch that fit (contract/memory.py), where no microBatchSize is given; None
            for as many as MICRO_BATCH_TOKENS allow.
    """
    if hyper.dropout > 0:
        rows = piece_rows(hyper, processes)
        pieces = -(-hyper.batch_size // rows)
        passes = -(-pieces // processes)
        return Share(rows, passes, hyper.sequence_length, min(rows * passes, hyper.batch_size))
    sequences = -(-hyper.batch_size // processes)
    most = hyper.micro_batch_size or fitting or micro_batch_rows(hyper.sequence_length)
    passes = -(-sequences // most)
    return Share(-(-sequences // passes), passes, hyper.sequence_length, sequences)

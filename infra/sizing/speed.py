"""Tell how fast machines train: peaks by data sheet, and the part of them that training reaches, with its origin.

Every speed is a range. Its ends are published figures of GPT-2 with 124 million parameters, or our own guess where
nobody published any; the text then says "ours". A measured run (infra/estimate/measured.py) replaces the range.
"""

from dataclasses import dataclass

from infra.fleet.catalog import ACCELERATORS, MachineType
from infra.sizing.ranges import NOTHING, Range
from trainer.contract.geometry import PEAKS, PeakSpeed
from trainer.contract.options import Hyperparameters


@dataclass(frozen=True)
class Gpu:
    """The speed of a GPU model.

    peak: dense TFLOP/s in bf16 or fp16, and in fp32, which is TF32 where the GPU has it.
    memory: GB/s. peers: GB/s from each GPU to the others of its machine.
    eager, compiled: the part of the peak that training reaches, without and with torch.compile.
    origin: of those parts, in words.
    """

    peak: PeakSpeed
    memory: float
    peers: float
    eager: Range
    compiled: Range
    origin: str


_A100 = (
    "nanoGPT's README: 250 ms for 12 x 1024 tokens is 13 % of an A100's peak, compiled 25 %; nanoGPT#110 30 %, the"
    " build-nanogpt lecture 50 %"
)
_H100 = "llm.c on 8 H100 reaches 40 %, nanoGPT compiled about 33 %; eager is as far below as on an A100 (ours)"
_SINGLE = Range(0.35, 0.7)  # of a peak without tensor cores: ours, as large fp32 products come near it
# Bandwidths are those of NVIDIA's data sheets. The trainer knows no peak of P100 and P4, and shows no MFU on them.
GPUS: dict[str, Gpu] = {
    "nvidia-tesla-t4": Gpu(
        PEAKS["T4"],
        320,
        6,
        Range(0.12, 0.3),
        Range(0.2, 0.38),
        "nobody published a T4: ours, below a V100's 38 % of peak",
    ),
    "nvidia-tesla-v100": Gpu(
        PEAKS["V100"], 900, 40, Range(0.15, 0.33), Range(0.25, 0.42), "nanoGPT#215 is 38 % of a V100's peak, compiled"
    ),
    "nvidia-tesla-p100": Gpu(PeakSpeed(9.3, 9.3), 732, 8, _SINGLE, _SINGLE, "fp32, without tensor cores: ours"),
    "nvidia-tesla-p4": Gpu(PeakSpeed(5.5, 5.5), 192, 6, _SINGLE, _SINGLE, "fp32, without tensor cores: ours"),
    "nvidia-l4": Gpu(
        PEAKS["L4"],
        300,
        8,
        Range(0.12, 0.35),
        Range(0.2, 0.45),
        "nobody published an L4: ours, below an A100's for its 72 W",
    ),
    "nvidia-tesla-a100": Gpu(PEAKS["A100"], 1555, 200, Range(0.12, 0.3), Range(0.25, 0.5), _A100),
    "nvidia-a100-80gb": Gpu(PEAKS["A100"], 2039, 200, Range(0.12, 0.3), Range(0.25, 0.5), _A100),
    "nvidia-h100-80gb": Gpu(PEAKS["H100"], 3350, 300, Range(0.08, 0.25), Range(0.25, 0.42), _H100),
    "nvidia-h100-mega-80gb": Gpu(PEAKS["H100"], 3350, 300, Range(0.08, 0.25), Range(0.25, 0.42), _H100),
}
# Seconds that the CPU needs to launch a layer's kernels, both ways. A small model on a GPU waits for it. Ours.
LAUNCHES, LAUNCHES_COMPILED = Range(0.0015, 0.004), Range(0.0004, 0.0015)
# GFLOP/s in fp32 of one physical core. A vCPU is half a core.
CORE = Range(15, 60)
CORE_ORIGIN = "N1 is Haswell to Skylake, 74 to 128 GFLOP/s a core at 2.0 to 2.3 GHz; 20 to 50 % of it is ours"
HERE = Range(12, 70)
HERE_ORIGIN = "our models of 1 and 4 million parameters on one machine reached 45 to 94 GFLOP/s a core, busy ones 18"
# GB/s at which the optimizer reads its vectors on a CPU: with one thread at worst, over all channels at best. Ours.
CPU_MEMORY = Range(5, 30)


@dataclass(frozen=True)
class Speed:
    """The speed of one trainer.

    flops: FLOP/s. layer: the least seconds for a layer of a micro-batch. memory: bytes/s of the optimizer.
    """

    flops: Range
    layer: Range
    memory: Range
    origin: str


def half_precision(accelerator: str, precision: str) -> bool:
    """Return whether a trainer on such a GPU ("" for none) uses bf16 or fp16, as trainer/model/device.py decides."""
    if precision == "auto":
        return bool(accelerator) and ACCELERATORS[accelerator].compute_capability >= 7.0
    return precision != "fp32"


def cpu_speed(cores: float, core: Range = CORE, origin: str = CORE_ORIGIN) -> Speed:
    """Return the speed of a trainer on some cores. core: GFLOP/s of one core."""
    return Speed(core.times(cores * 1e9), NOTHING, CPU_MEMORY.times(1e9), origin)


def gpu_speed(accelerator: str, hyper: Hyperparameters) -> Speed:
    """Return the speed of a trainer on one GPU."""
    gpu = GPUS[accelerator]
    half = half_precision(accelerator, hyper.precision)
    part = gpu.compiled if hyper.compile else gpu.eager
    if not half and ACCELERATORS[accelerator].compute_capability < 8.0:
        part = _SINGLE
    peak = (gpu.peak.half if half else gpu.peak.single) * 1e12
    launches = LAUNCHES_COMPILED if hyper.compile else LAUNCHES
    origin = f"{part.low:.0%} to {part.high:.0%} of {peak / 1e12:g} TFLOP/s: {gpu.origin}"
    return Speed(part.times(peak), launches, Range(0.4, 0.8).times(gpu.memory * 1e9), origin)


def gbps(machine: MachineType) -> float:
    """Return the most Gbit/s that a machine sends, by Google's page "GPU network bandwidth"; N1 as in the catalog."""
    if machine.gbps is not None:
        return machine.gbps
    if machine.family == "g2":
        return {4: 10, 8: 16, 12: 16, 16: 32, 24: 32, 32: 32, 48: 50}.get(machine.vcpus, 100)
    if machine.family == "a2":
        return {1: 24, 2: 32, 4: 50}.get(machine.accelerators, 100)
    return {1: 25, 2: 50, 4: 100}.get(machine.accelerators, 1000)

"""Tell how fast machines train: peaks by data sheet, and the part of them that training reaches, with its origin.

Every speed is a range. Its ends are published figures of GPT-2 with 124 million parameters, or our own guess where
nobody published any; the text then says "ours". A measured run (infra/estimate/measured.py) replaces the range.
"""

from dataclasses import dataclass

from infra.fleet.catalog import ACCELERATORS, MachineType
from infra.sizing.measured_gpus import measured
from infra.sizing.ranges import NOTHING, Range
from trainer.contract.geometry import PEAKS
from trainer.contract.options import Hyperparameters


@dataclass(frozen=True)
class Gpu:
    """The speed of a GPU model.

    name: in PEAKS, the dense TFLOP/s in bf16 or fp16, and in fp32, which is TF32 where the GPU has it.
    memory: GB/s. peers: GB/s from each GPU to the others of its machine.
    eager, compiled: the part of the peak that training reaches, without and with torch.compile.
    origin: of those parts, in words.
    """

    name: str
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
_BLACKWELL = "nobody published a {}: ours, an H100's"
# Bandwidths are those of NVIDIA's data sheets.
GPUS: dict[str, Gpu] = {
    "nvidia-tesla-t4": Gpu(
        "T4",
        320,
        6,
        Range(0.12, 0.3),
        Range(0.2, 0.38),
        "nobody published a T4: ours, below a V100's 38 % of peak",
    ),
    "nvidia-l4": Gpu(
        "L4",
        300,
        8,
        Range(0.12, 0.35),
        Range(0.2, 0.45),
        "nobody published an L4: ours, below an A100's for its 72 W",
    ),
    "nvidia-tesla-a100": Gpu("A100", 1555, 200, Range(0.12, 0.3), Range(0.25, 0.5), _A100),
    "nvidia-a100-80gb": Gpu("A100", 2039, 200, Range(0.12, 0.3), Range(0.25, 0.5), _A100),
    "nvidia-h100-80gb": Gpu("H100", 3350, 300, Range(0.08, 0.25), Range(0.25, 0.42), _H100),
    "nvidia-h100-mega-80gb": Gpu("H100", 3350, 300, Range(0.08, 0.25), Range(0.25, 0.42), _H100),
    "nvidia-h200-141gb": Gpu("H200", 4800, 300, Range(0.08, 0.25), Range(0.25, 0.42), _H100),
    "nvidia-b200": Gpu("B200", 8000, 600, Range(0.05, 0.2), Range(0.2, 0.42), f"{_BLACKWELL.format('B200')} or less"),
    "nvidia-rtx-pro-6000": Gpu(
        "RTX PRO 6000",
        1597,
        25,
        Range(0.08, 0.25),
        Range(0.2, 0.42),
        f"{_BLACKWELL.format('RTX PRO 6000')} or less",
    ),
}
# Seconds that the CPU needs to launch a layer's kernels, both ways. A small model on a GPU waits for it. Ours.
LAUNCHES, LAUNCHES_COMPILED = Range(0.0015, 0.004), Range(0.0004, 0.0015)
# GFLOP/s in fp32 of one physical core, by machine family. A vCPU is half a core. All are 20 to 50 % of a core's peak,
# which is the base clock times the operations of a cycle: 32 with AVX2 and on AMD's Rome to Genoa, 64 with AVX-512. The
# clocks are those of Google's page "CPU platforms" (Cyclenerd/google-cloud-compute-machine-types, 2026-03-22). Matrix
# units (AMX, of C3, C4 and N4) do not count: trainers compute in fp32 on CPUs.
CORES: dict[str, tuple[Range, str]] = {
    "n1": (Range(15, 60), "Haswell to Skylake, 2.0 to 2.3 GHz"),
    "e2": (Range(15, 60), "Haswell to Skylake or Rome, 2.0 to 2.3 GHz"),
    "n2": (Range(33, 90), "Cascade Lake or Ice Lake, 2.6 to 2.8 GHz"),
    "n2d": (Range(14, 39), "Rome or Milan, 2.25 to 2.45 GHz"),
    "n4": (Range(27, 67), "Emerald Rapids, 2.1 GHz"),
    "c3": (Range(24, 61), "Sapphire Rapids, 1.9 GHz"),
    "c3d": (Range(17, 42), "Genoa, 2.6 GHz"),
    "c4": (Range(29, 90), "Emerald or Granite Rapids, 2.3 to 2.8 GHz"),
    "c4d": (Range(35, 86), "Turin, 2.7 GHz"),
}
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


def machine_speed(machine: MachineType) -> Speed:
    """Return the speed of a trainer on the CPUs of a machine of Google Cloud."""
    cores, (core, processor) = max(1, machine.vcpus / 2), CORES[machine.family]
    origin = f"{cores:g} cores at {core.low:g} to {core.high:g} GFLOP/s: {processor}, 20 to 50 % of its peak (ours)"
    return cpu_speed(cores, core, origin)


def cpu_speed(cores: float, core: Range, origin: str) -> Speed:
    """Return the speed of a trainer on some cores. core: GFLOP/s of one core."""
    return Speed(core.times(cores * 1e9), NOTHING, CPU_MEMORY.times(1e9), origin)


def gpu_speed(accelerator: str, hyper: Hyperparameters) -> Speed:
    """Return the speed of a trainer on one GPU."""
    gpu, peaks = GPUS[accelerator], PEAKS[GPUS[accelerator].name]
    half = half_precision(accelerator, hyper.precision)
    part, origin = gpu.compiled if hyper.compile else gpu.eager, gpu.origin
    if not half and ACCELERATORS[accelerator].compute_capability < 8.0:
        part = _SINGLE
    found = measured(gpu.name, half=half, compiled=hyper.compile)
    if found is not None and found.mfu is not None:
        part = Range(0.9, 1.1).times(found.mfu)
        origin = f"measured on {found.device} with {found.model}, {found.date}, commit {found.commit[:7]}"
    peak = (peaks.half if half else peaks.single) * 1e12
    launches = LAUNCHES_COMPILED if hyper.compile else LAUNCHES
    origin = f"{part.low:.0%} to {part.high:.0%} of {peak / 1e12:g} TFLOP/s: {origin}"
    return Speed(part.times(peak), launches, Range(0.4, 0.8).times(gpu.memory * 1e9), origin)

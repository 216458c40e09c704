"""Choose the environment of a machine's computing process: its threads, its GPUs, and how NCCL treats errors."""

from collections.abc import Mapping

from trainer.contract.spec import JobSpec, Role
from trainer.machine.environment import cores, interface_of

DEVICES = "CUDA_VISIBLE_DEVICES"
# A lost member is no error of this process, which closes the group and continues in another. With torch's defaults,
# NCCL's watchdog instead ends the whole process, with its copy of the state, as soon as it hears of a lost peer, finds
# a time-out, or hangs itself. The names are those of ProcessGroupNCCL.hpp of torch 2.15.
SURVIVE = {
    "TORCH_NCCL_ASYNC_ERROR_HANDLING": "0",  # NoHandling; the default, 3, is the end of the process
    "TORCH_NCCL_RETHROW_CUDA_ERRORS": "0",  # by default the watchdog throws, and nobody can catch it
    "TORCH_NCCL_ENABLE_MONITORING": "0",  # by default a second thread ends the process if the watchdog hangs
    "TORCH_NCCL_PROPAGATE_ERROR": "0",
    "TORCH_NCCL_TEARDOWN_ON_TIMEOUT": "0",
    "TORCH_NCCL_BLOCKING_WAIT": "0",  # with it, Python would wait inside torch and hear no notice
    "NCCL_MULTI_RANK_GPU_ENABLE": "0",  # two processes on one GPU are a mistake here
}
CONNECTING = "TORCH_NCCL_NONBLOCKING_TIMEOUT"
CONNECTING_SECONDS = "30"


def process_environment(
    spec: JobSpec, name: str, role: Role, address: str, given: Mapping[str, str]
) -> tuple[dict[str, str], list[str]]:
    """Choose the variables of a machine's computing process that depend on the run.

    A variable that somebody has set to something else is overridden, not refused: the run needs our value whoever
    started the machine, and a machine that refused would be paid for without training.

    Args:
        spec: the run.
        name: the machine's name.
        role: its role.
        address: the IPv4 address under which the other machines reach it.
        given: the environment that the machine itself has.

    Returns:
        The variables, and a line for each that is overridden.
    """
    needed: dict[str, str] = {}
    if interface := interface_of(address):
        needed |= {"GLOO_SOCKET_IFNAME": interface, "NCCL_SOCKET_IFNAME": interface}
    on_gpus = role != "ps" and spec.cluster.gpus > 0
    if on_gpus:
        needed |= SURVIVE
    own_devices = devices(spec, name, role, given)
    compared = needed | ({DEVICES: own_devices} if on_gpus and spec.hardware else {})
    lines = [
        f"{variable}: found {given[variable]!r}, and this run needs {value!r}; going on with that"
        for variable, value in compared.items()
        if given.get(variable, value) != value
    ]
    if on_gpus:
        needed[CONNECTING] = given.get(CONNECTING, CONNECTING_SECONDS)
    return {**needed, DEVICES: own_devices, "OMP_NUM_THREADS": str(_threads(spec, role))}, lines


def devices(spec: JobSpec, name: str, role: Role, given: Mapping[str, str]) -> str:
    """Return the GPUs of a machine's processes, as CUDA_VISIBLE_DEVICES names them; empty for a machine without.

    On Google Cloud a machine has its GPUs for itself. The trainers of a local stack share out the computer's GPUs in
    their order: those that `given` names, or all.
    """
    each = spec.cluster.gpus
    if role == "ps" or not each:
        return ""
    if spec.hardware:
        return ",".join(map(str, range(each)))
    trainers = [machine for machine, its_role in spec.cluster.machines() if its_role != "ps"]
    every = given[DEVICES].split(",") if DEVICES in given else [str(i) for i in range(each * len(trainers))]
    place = trainers.index(name) * each if name in trainers else len(every)
    return ",".join(every[place : place + each])


def unused_gpus(spec: JobSpec, role: Role, found: str, given: Mapping[str, str]) -> str:
    """Return a line if this machine has GPUs and its run computes on CPUs, else an empty text.

    found: the machine's GPUs in words.
    """
    if role == "ps" or spec.cluster.gpus or not found or given.get(DEVICES) == "":
        return ""
    return f"the run was declared without GPUs: training on the CPU, and {found} stay unused; `pulumi up` declares them"


def _threads(spec: JobSpec, role: Role) -> int:
    """Return the threads with which a process of this machine computes."""
    if role != "ps":
        return spec.cluster.threads
    if not spec.hardware:  # the trainers have this computer's cores, and wait while servers compute
        return 1
    return max(1, cores() // 2 - 1)  # a thread for each core, without hyperthreads, but for the one that moves buckets

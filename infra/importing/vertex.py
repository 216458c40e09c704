"""Read Vertex AI's CustomJob, its jobSpec alone (as gcloud ai custom-jobs takes it), or a tuning job, into a Draft.

Every field of these in the discovery document aiplatform.v1 is named here, which a test checks.
"""

from typing import Any

from infra.importing.ai_platform import OWN_CODE, OWN_NETWORK, OWN_SEARCH, search
from infra.importing.draft import Draft, ImportProblem, Node, Pool
from trainer.contract.spec import Role

ROLES: tuple[Role, ...] = (
    "master",
    "worker",
    "ps",
)  # the roles of worker pools by their place; the fourth is the evaluator
TUNING = ("studySpec", "maxTrialCount", "parallelTrialCount", "maxFailedTrialCount")
STUDY_LEFT_OUT = dict.fromkeys(
    ("algorithm", "measurementSelectionType", "observationNoise", "studyStoppingConfig"), OWN_SEARCH
)
STOPPING = ("medianAutomatedStoppingSpec", "decayCurveStoppingSpec", "convexAutomatedStoppingSpec")
VALUES = {  # a parameter's key for its values: its type in AI Platform's words
    "doubleValueSpec": "DOUBLE",
    "integerValueSpec": "INTEGER",
    "discreteValueSpec": "DISCRETE",
    "categoricalValueSpec": "CATEGORICAL",
}
OUTPUTS = (
    *("createTime", "startTime", "endTime", "updateTime", "state", "error", "webAccessUris", "trials", "name"),
    *("satisfiesPzi", "satisfiesPzs"),
)
JOB_LEFT_OUT = {
    "displayName": "a run is named by its content",
    "labels": "everything gets the label gpt2-stack",
    "encryptionSpec": "buckets and disks have Google's own encryption",
} | dict.fromkeys(OUTPUTS, "written by the service")
SPEC_LEFT_OUT = {
    "baseOutputDirectory": "each stack has its own bucket, gs://PROJECT-STACK-gpt2",
    "enableDashboardAccess": "`python -m scripts.watch` follows a run",
    "enableWebAccess": "`python -m scripts.ssh` opens a shell on a machine",
    "experiment": "the bucket holds each run's metrics",
    "experimentRun": "the bucket holds each run's metrics",
    "tensorboard": "the bucket holds each run's TensorBoard events",
    "models": OWN_CODE,
    "network": OWN_NETWORK,
    "pscInterfaceConfig": OWN_NETWORK,
    "reservedIpRanges": OWN_NETWORK,
    "persistentResourceId": "a stack makes its own machines; machines.reservation names reserved ones",
    "protectedArtifactLocationId": "the bucket is in gcp:region",
    "serviceAccount": "the stack makes an account for each role, with no more rights than it needs",
}
POOL_LEFT_OUT = {
    "nfsMounts": "machines read from the bucket alone",
    "lustreMounts": "machines read from the bucket alone",
}
MACHINE_LEFT_OUT = {
    "tpuTopology": "there are no TPUs",
    "gpuPartitionSize": "GPUs are used whole",
    "reservationAffinity": "machines.reservation names reserved machines",
}
CODE_LEFT_OUT = dict.fromkeys(
    ("imageUri", "command", "env", "executorImageUri", "packageUris", "pythonModule"), OWN_CODE
)
SCHEDULING_LEFT_OUT = {
    "restartJobOnWorkerRestart": "a run continues without a lost machine, and Google makes it anew",
    "disableRetries": "a run continues without a lost machine, and Google makes it anew",
    "maxWaitDuration": "machines.flexStart waits for capacity, at most 7 days",
}


def is_job(content: dict[str, Any]) -> bool:
    """Return whether a file's keys are those of a job or of its spec."""
    names = {"workerPoolSpecs", "worker_pool_specs", "jobSpec", "job_spec", "trialJobSpec", "trial_job_spec"}
    return bool(names & set(content))


def read(content: dict[str, Any]) -> Draft:
    """Read a job, a tuning job, or a job's spec. Raise ImportProblem if it has no counterpart here."""
    draft = Draft()
    top = Node(draft, "", content)
    for name in TUNING:
        if top.has(name):
            draft.tuning[name] = top.take(name)
    for name in ("jobSpec", "trialJobSpec"):
        if top.has(name):
            _spec(draft, top.child(name))
            top.leave(JOB_LEFT_OUT)
            break
    else:
        _spec(draft, top)
    if draft.tuning:
        _study(draft)
    return draft


def _study(draft: Draft) -> None:
    """Turn a tuning job's search into AI Platform's words, which are this project's, and take it."""
    study = Node(draft, "studySpec", draft.tuning.get("studySpec", {}))
    metrics = study.items("metrics")
    if len(metrics) != 1:
        outcome = f"{len(metrics)} metrics, and a sweep has one; kept as a comment"
        draft.note("left out", study.path, draft.tuning, outcome)
        return
    metric = Node(draft, study.key("metrics[0]"), metrics[0])
    given: dict[str, Any] = {"hyperparameterMetricTag": metric.text("metricId"), "goal": metric.text("goal")}
    metric.leave({"safetyConfig": OWN_SEARCH})
    for name, ours in (("maxTrialCount", "maxTrials"), ("parallelTrialCount", "maxParallelTrials")):
        if name in draft.tuning:
            given[ours] = draft.tuning[name]
    if "maxFailedTrialCount" in draft.tuning:
        draft.note("left out", "maxFailedTrialCount", draft.tuning["maxFailedTrialCount"], OWN_SEARCH)
    stopping = {name: study.take(name) for name in STOPPING if study.has(name)}
    if stopping:
        given["enableTrialEarlyStopping"] = True
    parameters = [Node(draft, study.key(f"parameters[{i}]"), item) for i, item in enumerate(study.items("parameters"))]
    study.leave(STUDY_LEFT_OUT)
    if any(parameter.has("conditionalParameterSpecs") for parameter in parameters):
        outcome = "parameters that depend on others' values cannot be varied here; kept as a comment"
        draft.note("left out", study.path, draft.tuning, outcome)
        return
    given["params"] = [_parameter(parameter) for parameter in parameters]
    search(draft, study.path, given)
    for name, value in stopping.items() if draft.sweep else ():
        outcome = "sweep.enableTrialEarlyStopping: what is worse than the median of the trials before it stops"
        draft.note("replaced", study.key(name), value, outcome)


def _parameter(node: Node) -> dict[str, Any]:
    """Return a parameter in AI Platform's words."""
    parameter: dict[str, Any] = {"parameterName": node.text("parameterId"), "scaleType": node.text("scaleType") or None}
    for name, kind in VALUES.items():
        if node.has(name):
            values = node.child(name)
            parameter["type"] = kind
            for bound in ("minValue", "maxValue"):
                if values.has(bound):
                    parameter[bound] = values.take(bound)
            if kind in ("DISCRETE", "CATEGORICAL"):
                parameter[f"{kind.lower()}Values"] = values.items("values")
            values.leave({"defaultValue": "the first trials are drawn at random"})
    node.leave({})
    return parameter


def _spec(draft: Draft, node: Node) -> None:
    """Read a jobSpec into the draft."""
    draft.training["scaleTier"] = "CUSTOM"
    given = node.items("workerPoolSpecs")
    if not given:
        raise ImportProblem(f"{node.key('workerPoolSpecs')}: missing; it says which machines there are")
    pools = []
    for index, content in enumerate(given):
        path = f"{node.key('workerPoolSpecs')}[{index}]"
        if index >= len(ROLES):
            draft.note("left out", path, content, "the trainers evaluate, see evaluation in the stack file")
        elif content:  # a place may be empty
            pools += _pool(draft, Node(draft, path, content), ROLES[index])
    if not pools or pools[0].role != "master" or pools[0].count != 1:
        raise ImportProblem(f"{node.key('workerPoolSpecs')}[0]: its replicaCount must be 1; it is the master")
    draft.pools(pools)
    _scheduling(draft, node.child("scheduling"), any(pool.role == "worker" for pool in pools))
    node.leave(SPEC_LEFT_OUT)


def _pool(draft: Draft, node: Node, role: Role) -> list[Pool]:
    """Read a worker pool; none if it has no machines."""
    count = node.number("replicaCount", 1)
    if not count:
        parts = ("machineSpec", "diskSpec", "containerSpec", "pythonPackageSpec")
        node.leave(POOL_LEFT_OUT | dict.fromkeys(parts, "its replicaCount is 0"))
        return []
    machine, disk = node.child("machineSpec"), node.child("diskSpec")
    if role != "master":
        outcome = f"trainingInput.{'workerCount' if role == 'worker' else 'parameterServerCount'}"
        draft.note("mapped", node.key("replicaCount"), count, outcome)
    name, model = machine.text("machineType"), machine.text("acceleratorType")
    number = machine.number("acceleratorCount", 1)
    machine.leave(MACHINE_LEFT_OUT)
    if size := disk.number("bootDiskSizeGb", 0):
        draft.disk(disk.key("bootDiskSizeGb"), size)
    disk.leave({"bootDiskType": "machines boot from balanced persistent disks"})
    for code in ("containerSpec", "pythonPackageSpec"):
        if node.has(code):
            inner = node.child(code)
            draft.arguments(inner.key("args"), inner.items("args"))
            inner.leave(CODE_LEFT_OUT)
    node.leave(POOL_LEFT_OUT)
    if not name:
        raise ImportProblem(f"{machine.key('machineType')}: missing; every pool needs one")
    model = "" if model == "ACCELERATOR_TYPE_UNSPECIFIED" else model
    key = machine.key("acceleratorType")
    return [Pool(role, count, name, machine.key("machineType"), model, number if model else 0, key)]


def _scheduling(draft: Draft, node: Node, workers: bool) -> None:
    """Read the time limit and the way to get capacity."""
    if timeout := node.text("timeout"):
        draft.hours(node.key("timeout"), timeout)
    else:
        outcome = "limits.maxHours: 24 hours unless you set it; Vertex AI's default is 7 days"
        draft.note("replaced", node.key("timeout"), "not given", outcome)
    key, strategy = node.key("strategy"), node.text("strategy")
    if strategy in ("SPOT", "LOW_COST") and workers:
        draft.machines["spot"] = True
        draft.note("mapped", key, strategy, "machines.spot: true; of workers only, a lost master would stop all")
    elif strategy in ("SPOT", "LOW_COST"):
        draft.note("left out", key, strategy, "only workers can be Spot VMs, and there are none")
    elif strategy == "FLEX_START":
        draft.machines["flexStart"] = True
        draft.note("mapped", key, strategy, "machines.flexStart: true")
    elif strategy:
        draft.note("mapped", key, strategy, "machines on demand, which is the default")
    node.leave(SCHEDULING_LEFT_OUT)

"""Read AI Platform Training's `trainingInput`, as its files and its API have it, into a Draft.

The service is gone. Every field of its discovery document ml.v1 is named here, which a test checks.
"""

import re
from typing import Any

from pydantic import ValidationError
from pydantic.alias_generators import to_camel

from infra.importing.draft import ALIASES, NO_TPU, Draft, ImportProblem, Node, Pool, short
from infra.stack.keys import TIERS
from trainer.contract import search_space
from trainer.contract.options import Hyperparameters
from trainer.contract.spec import Role
from trainer.contract.sweep_options import Sweep

OWN_CODE = "this project brings its own trainer; what it trains on and how is in the stack file"
OWN_NETWORK = "the stack makes its own network, without public addresses"
# Fields that have no place in a stack file, and why.
LEFT_OUT = {
    "packageUris": OWN_CODE,
    "pythonModule": OWN_CODE,
    "runtimeVersion": "trainer/requirements.txt says which versions the image has",
    "pythonVersion": "trainer/Dockerfile says which Python the image has",
    "jobDir": "each stack has its own bucket, gs://PROJECT-STACK-gpt2",
    "serviceAccount": "the stack makes an account for each role, with no more rights than it needs",
    "network": OWN_NETWORK,
    "encryptionConfig": "buckets and disks have Google's own encryption",
    "useChiefInTfConfig": "there is no TF_CONFIG: the master is rank 0",
    "enableWebAccess": "`python -m scripts.ssh` opens a shell on a machine",
    "evaluatorType": "the trainers evaluate, see evaluation in the stack file",
    "evaluatorCount": "the trainers evaluate, see evaluation in the stack file",
    "evaluatorConfig": "the trainers evaluate, see evaluation in the stack file",
}
REPLICA_LEFT_OUT = {
    "imageUri": OWN_CODE,
    "containerCommand": OWN_CODE,
    "tpuTfVersion": "there are no TPUs",
}
JOB_LEFT_OUT = {
    "jobId": "a run is named by its content",
    "labels": "everything gets the label gpt2-stack",
    "predictionInput": "this project trains only",
}
# Fields that only Google writes into a job.
OUTPUTS = (
    *("createTime", "startTime", "endTime", "state", "errorMessage", "trainingOutput", "predictionOutput"),
    *("etag", "jobPosition"),
)
TUNING = (
    *("goal", "params", "maxTrials", "maxParallelTrials", "maxFailedTrials", "hyperparameterMetricTag"),
    *("resumePreviousJobId", "enableTrialEarlyStopping", "algorithm"),
)
METRICS = {"loss": "loss", "trainloss": "loss", "trainingloss": "loss"}  # keys: the tag without - and _
METRICS |= dict.fromkeys(("validationloss", "valloss", "evalloss", "perplexity"), "validationLoss")
OWN_SEARCH = "the search is by Optuna's TPE, until maxTrials or three failures in a row"
SWEEP = "gpt2-training:sweep; one trial after the other, each in runs/RUN/trials/N"
ROLES: dict[str, Role] = {"master": "master", "worker": "worker", "parameterServer": "ps"}
SCHEDULING_LEFT_OUT = {
    "maxWaitTime": "machines.flexStart waits for capacity, at most 7 days",
    "priority": "machines have no priority among each other",
}


def is_job(content: dict[str, Any]) -> bool:
    """Return whether a file's keys are those of a job or of a trainingInput itself."""
    return bool(
        {"trainingInput", "training_input", "scaleTier", "scale_tier", "masterType", "master_type"} & set(content)
    )


def read(content: dict[str, Any]) -> Draft:
    """Read a job, or its trainingInput alone. Raise ImportProblem if it has no counterpart here."""
    draft = Draft()
    top = Node(draft, "", content)
    if not top.has("trainingInput"):
        _training(draft, top)
        return draft
    _training(draft, top.child("trainingInput"))
    top.leave(JOB_LEFT_OUT | dict.fromkeys(OUTPUTS, "written by the service"))
    return draft


def _training(draft: Draft, node: Node) -> None:
    """Read a trainingInput into the draft."""
    draft.region = node.text("region")
    if draft.region:
        draft.note("mapped", node.key("region"), draft.region, "gcp:region")
    tier, given = _tier(draft, node)
    if tier == "BASIC_TPU":
        raise ImportProblem(f"{node.key('scaleTier')}: found BASIC_TPU; {NO_TPU}")
    if tier == "CUSTOM":
        draft.training["scaleTier"] = tier
        if given:
            draft.note("mapped", node.key("scaleTier"), tier, "trainingInput.scaleTier")
        draft.pools(_pools(draft, node))
    elif tier in TIERS:
        _preset(draft, node, tier, given)
    else:
        raise ImportProblem(f"{node.key('scaleTier')}: found {tier!r}, must be CUSTOM or one of {', '.join(TIERS)}")
    if node.has("hyperparameters"):
        _hyperparameters(draft, node.child("hyperparameters"))
    draft.arguments(node.key("args"), node.items("args"))
    schedule = node.child("scheduling")
    if longest := schedule.text("maxRunningTime"):
        draft.hours(schedule.key("maxRunningTime"), longest)
    else:
        outcome = "limits.maxHours: 24 hours unless you set it; AI Platform's default was 7 days"
        draft.note("replaced", schedule.key("maxRunningTime"), "not given", outcome)
    schedule.leave(SCHEDULING_LEFT_OUT)
    node.leave(LEFT_OUT)


def _tier(draft: Draft, node: Node) -> tuple[str, bool]:
    """Return the scale tier, and whether the file has one. AI Platform required it; a note tells what is assumed."""
    if tier := node.text("scaleTier"):
        return tier, True
    named = [key for name in ROLES for key in (f"{name}Type", f"{name}Count") if node.has(key)]
    if named:
        outcome = f"trainingInput.scaleTier: CUSTOM is assumed, as {' and '.join(named)} mean something to it alone"
    else:
        outcome = "trainingInput.scaleTier: BASIC is assumed, one small machine, as the file names none"
    draft.note("to fill in", node.key("scaleTier"), "not given", outcome)
    return ("CUSTOM" if named else "BASIC"), False


def _preset(draft: Draft, node: Node, tier: str, given: bool) -> None:
    """Read a preset. The service took no machine types with one."""
    draft.training["scaleTier"] = tier
    if tier == "BASIC_GPU":
        draft.note("replaced", node.key("scaleTier"), tier, "trainingInput.scaleTier, with a T4 in place of the K80")
    elif given:
        draft.note("mapped", node.key("scaleTier"), tier, "trainingInput.scaleTier")
    for name in ROLES:
        for key in (f"{name}Type", f"{name}Count"):
            if node.has(key):
                draft.note("left out", node.key(key), node.take(key), f"scaleTier {tier} sets it")
        if node.has(f"{name}Config"):
            replica = node.child(f"{name}Config")
            draft.arguments(replica.key("containerArgs"), replica.items("containerArgs"))
            reasons = dict.fromkeys(("acceleratorConfig", "diskConfig"), f"scaleTier {tier} sets it")
            replica.leave(REPLICA_LEFT_OUT | reasons)


def _pools(draft: Draft, node: Node) -> list[Pool]:
    """Read the machines of all roles of scale tier CUSTOM."""
    pools = []
    for name, role in ROLES.items():
        count = 1 if role == "master" else node.number(f"{name}Count", 0)
        if not count:
            for key in (f"{name}Type", f"{name}Config"):
                if node.has(key):
                    draft.note("left out", node.key(key), node.take(key), f"{name}Count is 0")
            continue
        machine = node.text(f"{name}Type")
        if role != "master":
            draft.note("mapped", node.key(f"{name}Count"), count, f"trainingInput.{name}Count")
        replica = node.child(f"{name}Config")
        accelerator, disk = replica.child("acceleratorConfig"), replica.child("diskConfig")
        model, number = accelerator.text("type"), accelerator.number("count", 1)
        accelerator.leave({})
        if size := disk.number("bootDiskSizeGb", 0):
            draft.disk(disk.key("bootDiskSizeGb"), size)
        draft.arguments(replica.key("containerArgs"), replica.items("containerArgs"))
        disk.leave({"bootDiskType": "machines boot from balanced persistent disks"})
        replica.leave(REPLICA_LEFT_OUT)
        if not machine:
            raise ImportProblem(f"{node.key(f'{name}Type')}: missing; scaleTier CUSTOM needs it, as AI Platform did")
        if machine == "cloud_tpu":
            raise ImportProblem(f"{node.key(f'{name}Type')}: found cloud_tpu; {NO_TPU}")
        model = "" if model == "ACCELERATOR_TYPE_UNSPECIFIED" else model
        key = f"{replica.path}.acceleratorConfig" if model else ""
        pools.append(Pool(role, count, machine, node.key(f"{name}Type"), model, number if model else 0, key))
    return pools


def _hyperparameters(draft: Draft, node: Node) -> None:
    """Read plain values, as this project has them, or a tuning spec, as AI Platform's API has it, or both."""
    for name in TUNING:
        if node.has(name):
            draft.tuning[name] = node.take(name)
    for name, value in node.rest().items():
        draft.hyperparameter(node.key(name), name, value)
    if draft.tuning:
        given = dict(draft.tuning)
        for name in ("maxFailedTrials", "resumePreviousJobId", "algorithm"):
            if name in given:
                draft.note("left out", f"{node.path}.{name}", given.pop(name), OWN_SEARCH)
        search(draft, node.path, given)


def search(draft: Draft, path: str, given: dict[str, Any]) -> None:
    """Turn a search in AI Platform's words into gpt2-training:sweep.

    A search that this project cannot do stays in draft.tuning, as it is in the file, and becomes a comment; a note says
    why.
    """

    def leave(why: str) -> None:
        draft.note("left out", path, draft.tuning, f"{why}; kept as a comment")

    metric_tag = str(given.get("hyperparameterMetricTag") or "")
    metric = METRICS.get(re.sub("[-_]", "", metric_tag or "validationLoss").lower())
    if metric is None:
        leave(f"the metric {metric_tag} is not measured here")
        return
    given["hyperparameterMetricTag"] = metric
    given.setdefault("maxTrials", 1)  # AI Platform's default
    if (goal := given.pop("goal", None)) == "MAXIMIZE":
        leave(f"goal: MAXIMIZE of {metric_tag or metric} looks for the worst model")
        return
    assumed = goal in (None, "", "GOAL_TYPE_UNSPECIFIED")
    given["goal"] = "MINIMIZE" if assumed else goal
    listed = given.get("params") or []
    for index, each in enumerate(listed if isinstance(listed, list) else [listed]):
        if not isinstance(each, dict):
            leave(f"params[{index}]: found {short(each)}, must be keys and values")
            return
    params = [dict(each) for each in listed]
    for each in params:
        name = str(each.get("parameterName", ""))
        each["parameterName"] = to_camel(ALIASES.get(re.sub("[-_]", "", name).lower(), name))
        if each.get("scaleType") in (None, "NONE", "SCALE_TYPE_UNSPECIFIED"):
            each.pop("scaleType", None)
    try:
        made = Sweep.model_validate({**given, "params": params})
        hyperparameters = Hyperparameters.model_validate(draft.hyperparameters)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        leave(f"{where}: {first['msg'].lower()}")
        return
    parallel = made.max_parallel_trials
    made = made.model_copy(update={"max_parallel_trials": 1} if parallel > 1 else {})
    wrong = search_space.problems(made, hyperparameters, trainers=1, positions=2**31)
    if wrong:
        leave(wrong[0])
        return
    draft.sweep, draft.tuning = made.model_dump(mode="json", by_alias=True, exclude_unset=True), {}
    draft.note("mapped", path, f"{len(params)} parameters, {made.max_trials} trials", SWEEP)
    tag_key, outcome = f"{path}.hyperparameterMetricTag", f"sweep.hyperparameterMetricTag: {metric}"
    if not metric_tag:
        draft.note("to fill in", tag_key, "not given", f"{outcome} is assumed")
    elif metric_tag != metric:
        draft.note("replaced", tag_key, metric_tag, f"{outcome}, the nearest that is measured here")
    if assumed:
        draft.note("to fill in", f"{path}.goal", "not given", "sweep.goal: MINIMIZE is assumed, as it is a loss")
    if parallel > 1:
        outcome = "sweep.maxParallelTrials: 1, as all machines train one trial after the other"
        draft.note("replaced", f"{path}.maxParallelTrials", parallel, outcome)

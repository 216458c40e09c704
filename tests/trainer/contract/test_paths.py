"""The bucket's layout: paths stay those of earlier buckets, and each path can be parsed into its parts."""

from hypothesis import given
from hypothesis import strategies as st

from trainer.contract import paths
from trainer.storage.base import path_parts

RUN = "gpt2-4x128-4e63907f"
LAYOUT = {
    "current.json": paths.CURRENT,
    "data/0123456789abcdef/my-data.txt": paths.text("0123456789abcdef", "my-data.txt"),
    "data/0123456789abcdef/gpt2-held-out-0.05": paths.tokens("0123456789abcdef", "gpt2-held-out-0.05"),
    "vocabulary/gpt2": paths.VOCABULARY,
    "build/0123.tar.gz": paths.image_source("0123"),
    f"runs/{RUN}": paths.run(RUN),
    f"runs/{RUN}/job.json": paths.job(RUN),
    f"runs/{RUN}/status.json": paths.status(RUN),
    f"runs/{RUN}/launches/2.json": paths.launch(RUN, 2),
    f"runs/{RUN}/launches/2.placement.json": paths.placement(RUN, 2),
    f"runs/{RUN}/cluster.json": paths.lease(RUN),
    f"runs/{RUN}/machines/ps-0.json": paths.machine(RUN, "ps-0"),
    f"runs/{RUN}/machines/ps-0.lock": paths.machine_lock(RUN, "ps-0"),
    f"runs/{RUN}/machines/ps-0.log": paths.machine_log(RUN, "ps-0"),
    f"runs/{RUN}/metrics/attempt-3-master-0-1700000000-00007.jsonl": paths.metrics_file(
        RUN, 3, "master-0", 1700000000, 7
    ),
    f"runs/{RUN}/metrics/tensorboard": paths.tensorboard(RUN),
    f"runs/{RUN}/samples.jsonl": paths.samples(RUN),
    f"runs/{RUN}/checkpoints/step-00000500-attempt-1": f"{paths.checkpoints(RUN)}/{paths.checkpoint_name(500, 1)}",
    f"runs/{RUN}/scratch/worker-0-1": paths.scratch(RUN, "worker-0-1"),
    f"runs/{RUN}/model": paths.model(RUN),
    f"runs/{RUN}/model/config.json": paths.model_file(RUN, "config.json"),
    f"runs/{RUN}/model/manifest.json": paths.model_manifest(RUN),
    f"runs/{RUN}/evaluation.json": paths.evaluation(RUN),
    f"runs/{RUN}/predictions.jsonl": paths.predictions(RUN),
    f"runs/{RUN}/report.html": paths.report(RUN),
    f"runs/{RUN}/sweep.json": paths.sweep(RUN),
    f"runs/{RUN}/trials/12/parameters.json": paths.parameters(paths.trial_id(RUN, 12)),
}

ids = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,30}", fullmatch=True)
counts = st.integers(0, 10**12)


def test_every_path_is_the_one_that_earlier_buckets_have() -> None:
    for path, built in LAYOUT.items():
        assert built == path
        assert "/".join(path_parts(path)) == path


@given(ids, st.none() | st.integers(1, 10**6))
def test_paths_of_a_runs_files_name_their_run(run: str, trial: int | None) -> None:
    if trial is not None:
        assert paths.sweep_of(paths.trial_id(run, trial)) == run
        run = paths.trial_id(run, trial)
    else:
        assert paths.sweep_of(run) is None
    files = {
        paths.job(run): paths.run_of_job,
        paths.status(run): paths.run_of_status,
        paths.model_manifest(run): paths.run_of_model,
    }
    others = [paths.machine(run, "master-0"), paths.model_file(run, "config.json"), paths.sweep(run), paths.CURRENT]
    for parse in files.values():
        assert [parse(path) for path in files if files[path] is parse] == [run]
        assert {parse(path) for path in [*files, *others] if files.get(path) is not parse} == {None}


@given(ids, counts, counts)
def test_checkpoint_name_is_parsed_into_step_and_attempt(run: str, step: int, attempt: int) -> None:
    name = paths.checkpoint_name(step, attempt)
    folder = f"{paths.checkpoints(run)}/{name}"
    assert paths.parse_checkpoint(name) == (step, attempt)
    assert paths.parse_whole_checkpoint(f"{folder}/{paths.MANIFEST}") == (step, attempt)
    assert paths.parse_whole_checkpoint(f"{folder}/part-00000-of-00001.json") is None
    assert paths.parse_whole_checkpoint(paths.model_manifest(run)) is None


@given(st.text(max_size=40))
def test_other_names_are_not_parsed_as_checkpoints(name: str) -> None:
    parsed = paths.parse_checkpoint(name)
    assert parsed is None or int(name.split("-")[1]) == parsed[0]


@given(ids, ids)
def test_paths_of_machines_and_metrics_belong_to_one_run_only(run: str, other: str) -> None:
    machine, metrics = paths.machine(run, "ps-1"), paths.metrics_file(run, 1, "ps-1", 0, 0)
    assert paths.is_machine(machine, run)
    assert paths.is_metrics(metrics, run)
    assert not paths.is_machine(metrics, run)
    assert not paths.is_metrics(machine, run)
    assert not paths.is_metrics(f"{paths.tensorboard(run)}/events.out", run)
    assert not paths.is_machine(paths.machine_lock(run, "ps-1"), run)
    assert (run == other) == paths.is_machine(machine, other) == paths.is_metrics(metrics, other)

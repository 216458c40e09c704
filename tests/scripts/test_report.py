"""`python -m scripts.report`: the place of the page, and the lines for mistakes."""

from pathlib import Path

import pytest

from scripts import report
from scripts.support.common import UserError
from tests.trainer.report.report_page import Page, bucket, declare, record, write_records


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Make a bucket with two runs."""
    storage = bucket(tmp_path / "bucket")
    for run, loss in (("one", 3.0), ("two", 2.5)):
        declare(storage, run)
        write_records(storage, [record(99), record(100), record(100, validation_loss=loss)], run)
    return tmp_path / "bucket"


def test_report_is_written_beside_the_run_or_to_the_given_place(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report.main(["--bucket", str(folder), "--run", "one"])
    usual = folder / "runs/one/report.html"
    assert capsys.readouterr().out == f"{usual}\n"
    assert Page(usual.read_text()).row("validation loss")[0] == "3.0000"
    report.main(["--bucket", str(folder), "--run", "one", "--to", str(tmp_path / "new/page.html"), "--compare", "two"])
    page = Page((tmp_path / "new/page.html").read_text())
    assert "step 100: one 3, two 2.5" in page.attributes("div", "data-stops")[1]


def test_report_of_a_run_on_google_cloud_is_written_into_the_current_folder() -> None:
    class Cloud:
        def local_path(self, path: str) -> None:
            return None

    assert report.target(Cloud(), "one", None) == Path("report-one.html")  # type: ignore[arg-type]


@pytest.mark.parametrize("compared", [[], ["--compare", "three"]], ids=["run", "compare"])
def test_report_of_a_missing_run_lists_the_runs(folder: Path, compared: list[str]) -> None:
    run = "one" if compared else "three"
    with pytest.raises(UserError, match=r"there is no run three in .*; runs there: (one, two|two, one)"):
        report.main(["--bucket", str(folder), "--run", run, *compared])


def test_report_of_a_run_of_another_version_is_refused(folder: Path) -> None:
    (folder / "runs/one/job.json").write_text('{"run": "one"}')
    with pytest.raises(UserError, match=r"model: Field required; was it written by another version"):
        report.main(["--bucket", str(folder), "--run", "one"])
    (folder / "runs/one/job.json").unlink()
    with pytest.raises(UserError, match=r"has no job.json of one or of a run of --compare"):
        report.main(["--bucket", str(folder), "--run", "one"])


def test_report_to_an_unwritable_place_is_one_line(folder: Path) -> None:
    with pytest.raises(UserError, match=r"^--to .*/runs: Is a directory"):
        report.main(["--bucket", str(folder), "--run", "one", "--to", str(folder / "runs")])

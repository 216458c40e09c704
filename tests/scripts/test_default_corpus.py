import sysconfig
from pathlib import Path

import pytest

from scripts import default_corpus
from scripts.support.common import UserError
from trainer.contract.options import END_OF_TEXT

LIBRARY = Path(sysconfig.get_path("stdlib"))


def library(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def test_text_of_the_real_library_is_the_same_twice(tmp_path: Path) -> None:
    size = default_corpus.write(tmp_path / "a.txt", LIBRARY)
    default_corpus.write(tmp_path / "b.txt", LIBRARY)
    text = (tmp_path / "a.txt").read_bytes()
    assert text == (tmp_path / "b.txt").read_bytes()
    assert default_corpus.SMALLEST <= size == len(text) <= default_corpus.LARGEST
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "b.txt"]


def test_held_out_end_mixes_packages_as_the_beginning_does(tmp_path: Path) -> None:
    names = [f"{package}/{letter}.py" for package in "abcdefghij" for letter in "pqrstuvwxyz"]
    text = default_corpus.collect(library(tmp_path, {name: f"# {name}\n".encode() for name in names}))
    end = text.split(default_corpus.SEPARATOR)[-20:]
    assert len({document[2] for document in end}) >= 5  # these are the packages among the last 20 of 110 documents


def test_text_leaves_out_tests_and_other_encodings_and_separates_documents(tmp_path: Path) -> None:
    files = {
        "good.py": b"a = 1\n",
        "pkg/latin.py": b"# coding: latin-1\n# \xe9\n",
        "pkg/test/no.py": b"no = 1\n",
        "site-packages/no.py": b"no = 1\n",
        "ensurepip/_bundled/no.py": b"no = 1\n",
        "_sysconfigdata_x.py": b"no = 1\n",
        "broken.py": b"no = '\xff\xfe'\n",
        "empty.py": b"",
        "separator.py": f"no = '{END_OF_TEXT}'\n".encode(),
        "readme.txt": b"no\n",
    }
    text = default_corpus.collect(library(tmp_path, files))
    assert sorted(text.split(f"{END_OF_TEXT}\n")) == ["# coding: latin-1\n# é\n", "a = 1\n"]


def test_size_of_the_text_is_bounded(tmp_path: Path) -> None:
    root = library(tmp_path, {f"{i}.py": b"x" * 90 + b"\n" for i in range(50)})
    assert 850 < len(default_corpus.collect(root, largest=1000)) <= 1000


def test_existing_file_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "default.txt"
    target.write_text("mine")
    assert default_corpus.main(["--output", str(target)]) == 0
    assert target.read_text() == "mine"
    assert "kept" in capsys.readouterr().out


def test_library_without_sources_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = library(tmp_path / "lib", {"a.py": b"a = 1\n"})
    monkeypatch.setattr("scripts.default_corpus.sysconfig.get_path", lambda name: str(root))
    target = tmp_path / "data" / "default.txt"
    with pytest.raises(UserError, match=r"has only 6 bytes of Python sources.*data\.path"):
        default_corpus.main(["--output", str(target)])
    assert not target.exists()

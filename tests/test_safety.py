"""No loaded file may execute code: no pickles, and no code that comes with a model."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OURS = ("infra", "trainer", "scripts", "examples", "policy", "tools", "benchmarks")
MODULES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
CALLS = {"torch.load", "torch.jit.load", "yaml.unsafe_load", "eval", "exec"}
WORDS = {"trust_remote_code": True, "allow_pickle": True, "weights_only": False, "use_safetensors": False}


def sources() -> list[Path]:
    found = (path for folder in OURS for path in (ROOT / folder).rglob("*.py"))
    return [ROOT / "__main__.py", *(path for path in found if ".venv" not in path.parts)]


def unsafe(code: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            yield from (f"import {name}" for name in names if name.partition(".")[0] in MODULES)
        elif isinstance(node, ast.Call):
            if (called := ast.unparse(node.func)) in CALLS:
                yield called
            for word in node.keywords:
                value = word.value.value if isinstance(word.value, ast.Constant) else None
                if word.arg in WORDS and (value is None or value is WORDS[word.arg]):
                    yield f"{word.arg}={ast.unparse(word.value)}"


def test_sources_load_nothing_that_may_execute_code() -> None:
    found = {path.relative_to(ROOT).as_posix(): list(unsafe(path.read_text(encoding="utf-8"))) for path in sources()}
    assert len(found) > 100
    assert {path: lines for path, lines in found.items() if lines} == {}


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from pickle import loads",
        "torch.load(file)",
        "f(trust_remote_code=True)",
        "f(trust_remote_code=x)",
    ],
)
def test_search_for_unsafe_loading_finds_each_kind(code: str) -> None:
    assert list(unsafe(code))

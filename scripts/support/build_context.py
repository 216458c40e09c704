"""A folder as a build context for docker: what .dockerignore leaves, the same bytes for the same files."""

import gzip
import io
import re
import tarfile
from pathlib import Path

ALWAYS = ("Dockerfile", ".dockerignore")  # docker itself reads them, whatever .dockerignore says


def pack(folder: Path) -> bytes:
    """A .tar.gz of the context. No times, owners or modes are in it."""
    buffer = io.BytesIO()
    with gzip.GzipFile(fileobj=buffer, mode="wb", mtime=0) as packed, tarfile.open(fileobj=packed, mode="w") as tar:
        for path in files(folder):
            content = path.read_bytes()
            entry = tarfile.TarInfo(path.relative_to(folder).as_posix())
            entry.size, entry.mode = len(content), 0o644
            tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def files(folder: Path) -> list[Path]:
    """The files of the context, sorted."""
    ignore = folder / ".dockerignore"
    rules = _rules(ignore.read_text(encoding="utf-8")) if ignore.is_file() else []
    found = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return [path for path in found if _taken(path.relative_to(folder).as_posix(), rules)]


def _taken(path: str, rules: list[tuple[re.Pattern[str], bool]]) -> bool:
    """As docker decides: the last rule that fits the path or a folder above it."""
    if path in ALWAYS:
        return True
    parts = path.split("/")
    above = ["/".join(parts[: i + 1]) for i in range(len(parts))]
    taken = True
    for pattern, takes in rules:
        if any(pattern.fullmatch(name) for name in above):
            taken = takes
    return taken


def _rules(text: str) -> list[tuple[re.Pattern[str], bool]]:
    """(pattern of a path, whether it takes the path in again) of each line."""
    rules = []
    for line in text.splitlines():
        line = line.strip()
        if line and not line.startswith("#"):
            rules.append((_pattern(line.removeprefix("!").strip().strip("/")), line.startswith("!")))
    return rules


def _pattern(glob: str) -> re.Pattern[str]:
    """Of the wildcards only *, ? and **, which are all that our own file may use."""
    words = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    parts = re.split(r"(\*\*/|\*\*|\*|\?)", glob)
    return re.compile("".join(words.get(part) or re.escape(part) for part in parts))

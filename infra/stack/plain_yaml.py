"""Read YAML as Pulumi does: scripts read stack files without the CLI, and must see the same values."""

import re
from typing import Any

import yaml


class Loader(yaml.SafeLoader):
    """A loader that reads plain scalars as Pulumi's YAML does: 1e-3 is a number, yes and 2026-01-01 are texts.

    As in Pulumi, a key that is there twice is an error.
    """

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for name, _ in node.value:
            if not isinstance(name, yaml.ScalarNode) or name.tag == "tag:yaml.org,2002:merge":
                continue
            if name.value in lines:
                problem = f"the key {name.value} is there twice, first in line {lines[name.value]}; remove one"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=name.start_mark)
            lines[name.value] = name.start_mark.line + 1
        return node


_PLAIN = {
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": (r"[-+]?(0|[1-9][0-9_]*)|[-+]?0o?[0-7_]+|[-+]?0x[0-9a-fA-F_]+", "-+0123456789"),
    "float": (r"[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9_]*)?)([eE][-+]?[0-9]+)?", "-+.0123456789"),
    "null": (r"~|null|Null|NULL|", "~nN\0"),
    "merge": (r"<<", "<"),
}
Loader.yaml_implicit_resolvers = {}
for _tag, (_pattern, _first) in _PLAIN.items():
    _letters: list[Any] = ["" if c == "\0" else c for c in _first]
    Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _letters)


def parse(text: str) -> Any:
    """Return a document's content. Raise yaml.YAMLError."""
    return yaml.load(text, Loader=Loader)  # noqa: S506  a SafeLoader

"""Google's discovery documents as a check of REST calls: the method exists, every parameter and field is known.

The documents come with the package google-api-python-client, one for each API; none of them is fetched. A call is named
as in trainer/gcloud/api.py: service, verb, path behind the service's base, query, body.
"""

import functools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import googleapiclient.discovery_cache

VERSIONS = {
    "artifactregistry": "v1",
    "cloudbilling": "v1",
    "cloudbuild": "v1",
    "cloudresourcemanager": "v1",
    "cloudscheduler": "v1",
    "compute": "v1",
    "iam": "v1",
    "iamcredentials": "v1",
    "logging": "v2",
    "monitoring": "v3",
    "serviceusage": "v1",
    "sts": "v1",
    "workflowexecutions": "v1",
    "workflows": "v1",
}
# Cloud Quotas has no document in the package: a server or caller of it must follow its reference, as rest.py does.
UNDOCUMENTED = {"cloudquotas": "v1"}
BOUNDS = {
    "int32": (-(2**31), 2**31 - 1),
    "uint32": (0, 2**32 - 1),
    "int64": (-(2**63), 2**63 - 1),
    "uint64": (0, 2**64 - 1),
}
SHAPES = {  # the JSON form of a string of each format
    "byte": r"[A-Za-z0-9+/_-]*={0,2}",
    "date-time": r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?(Z|[+-]\d\d:\d\d)",
    "google-datetime": r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?(Z|[+-]\d\d:\d\d)",
    "google-duration": r"-?\d+(\.\d{1,9})?s",
}


class Refused(Exception):
    """One line: the part of a call, or of an answer, that Google's documents do not know."""


@dataclass(frozen=True)
class Method:
    """A method of an API, such as compute.regionInstanceGroupManagers.resize."""

    id: str
    verb: str
    path: re.Pattern[str]  # it matches the whole path; its groups are the parameters in it
    parameters: Mapping[str, dict[str, Any]]  # the parameters of the query, the API's common ones included
    request: dict[str, Any] | None  # these are schemas, in the document's form
    response: dict[str, Any] | None


class Api:
    """One API's document."""

    def __init__(self, document: dict[str, Any]) -> None:
        self._schemas: dict[str, dict[str, Any]] = document.get("schemas", {})
        self._prefix: str = document["servicePath"]
        self._common = document.get("parameters", {})
        self.version: str = document["version"]
        self.methods = {method.id: method for method in self._methods(document)}

    def _methods(self, node: dict[str, Any]) -> list[Method]:
        found = [self._method(method) for method in node.get("methods", {}).values()]
        for resource in node.get("resources", {}).values():
            found += self._methods(resource)
        return found

    def _method(self, method: dict[str, Any]) -> Method:
        parameters = {**self._common, **method.get("parameters", {})}
        query = {name: p for name, p in parameters.items() if p.get("location") == "query"}
        pattern = "".join(
            _placeholder(part, parameters) if part.startswith("{") else re.escape(part)
            for part in re.split(r"({[^}]+})", self._prefix + method["path"])
        )
        return Method(
            method["id"],
            method["httpMethod"],
            re.compile(pattern),
            query,
            method.get("request"),
            method.get("response"),
        )

    def check(self, verb: str, path: str, query: Mapping[str, Any] | None = None, body: Any = None) -> Method:
        """Return the method of a call whose `path` is relative to the service's base. Raise Refused.

        `query` maps a name to a value, or to a list of them where the parameter may be repeated.
        """
        method = self._find(verb, path)
        self._check_query(method, query or {})
        if method.request is None:
            if body not in (None, {}):
                raise Refused(f"{method.id} takes no body, but was sent {_short(body)}")
        else:
            self._check_value(f"{method.id}: body", method.request, {} if body is None else body, asked=True)
        return method

    def check_answer(self, method: Method, body: Any) -> None:
        """Check that Google could have answered this. Raise Refused."""
        if method.response is None:
            if body not in (None, {}):
                raise Refused(f"{method.id} answers nothing, not {_short(body)}")
        else:
            self._check_value(f"{method.id}: answer", method.response, body, asked=False)

    def parts(self, method: Method, path: str) -> dict[str, str]:
        """Return the parameters in a path that fits the method, such as {"project": ...}."""
        match = method.path.fullmatch(self._full(path))
        assert match, f"{path} is no path of {method.id}"
        return match.groupdict()

    def _full(self, path: str) -> str:
        return f"{self._prefix or self.version + '/'}{path}"

    def _find(self, verb: str, path: str) -> Method:
        full = self._full(path)
        fitting = [method for method in self.methods.values() if method.path.fullmatch(full)]
        for method in fitting:
            if method.verb == verb:
                return method
        if fitting:
            known = ", ".join(sorted({f"{method.verb} ({method.id})" for method in fitting}))
            raise Refused(f"{verb} {full}: this path only knows {known}")
        raise Refused(f"{verb} {full}: no method has this path")

    def _check_query(self, method: Method, query: Mapping[str, Any]) -> None:
        for name, given in query.items():
            schema = method.parameters.get(name)
            if schema is None:
                raise Refused(f"{method.id} has no query parameter {name!r}")
            values = given if isinstance(given, list | tuple) else [given]
            if len(values) > 1 and not schema.get("repeated"):
                raise Refused(f"{method.id}: query parameter {name!r} cannot be repeated")
            for value in values:
                self._check_text(f"{method.id}: query parameter {name!r}", schema, value)
        for name, schema in method.parameters.items():
            if schema.get("required") and name not in query:
                raise Refused(f"{method.id}: the query parameter {name!r} is missing")

    def _check_text(self, where: str, schema: dict[str, Any], value: Any) -> None:
        """Check a query parameter, which is sent as text whatever its type."""
        if isinstance(value, bool):  # requests writes True, which Google does not read
            raise Refused(f"{where}: {value} would be sent as {str(value)!r}; write 'true' or 'false'")
        text = str(value)
        match schema["type"]:
            case "boolean" if text not in ("true", "false"):
                raise Refused(f"{where}: {text!r} is neither true nor false")
            case "integer":
                self._check_integer(where, schema, text)
            case "number" if not re.fullmatch(r"-?\d+(\.\d+)?([eE]-?\d+)?", text):
                raise Refused(f"{where}: {text!r} is no number")
            case "string":
                self._check_string(where, schema, text)

    def _check_value(self, where: str, schema: dict[str, Any], value: Any, asked: bool) -> None:
        if "$ref" in schema:
            schema = self._schemas[schema["$ref"]]
        if value is None:
            return  # a null counts as an absent value
        match schema.get("type"):
            case "object":
                self._check_object(where, schema, value, asked)
            case "array":
                if not isinstance(value, list):
                    raise Refused(f"{where} is a list, not {_short(value)}")
                for index, item in enumerate(value):
                    self._check_value(f"{where}[{index}]", schema["items"], item, asked)
            case "string":
                number = isinstance(value, int) and not isinstance(value, bool)
                if asked and number and schema.get("format") in BOUNDS:
                    value = str(value)  # Google also reads 64-bit numbers as numbers; it writes them as texts
                if not isinstance(value, str):
                    raise Refused(f"{where} is a string, not {_short(value)}")
                self._check_string(where, schema, value)
            case "integer":
                if isinstance(value, bool) or not isinstance(value, int):
                    raise Refused(f"{where} is an integer, not {_short(value)}")
                self._check_integer(where, schema, str(value))
            case "number":
                if isinstance(value, bool) or not isinstance(value, int | float):
                    raise Refused(f"{where} is a number, not {_short(value)}")
            case "boolean":
                if not isinstance(value, bool):
                    raise Refused(f"{where} is a boolean, not {_short(value)}")

    def _check_object(self, where: str, schema: dict[str, Any], value: Any, asked: bool) -> None:
        if not isinstance(value, dict):
            raise Refused(f"{where} is an object, not {_short(value)}")
        known, others = schema.get("properties", {}), schema.get("additionalProperties")
        for name, item in value.items():
            field = known.get(name, others)
            if field is None:
                raise Refused(f"{where} has no field {name!r} ({schema.get('id', 'object')})")
            if asked and field.get("readOnly"):
                raise Refused(f"{where}: {name!r} is for answers only ({schema.get('id', 'object')})")
            self._check_value(f"{where}.{name}", field, item, asked)

    def _check_string(self, where: str, schema: dict[str, Any], value: str) -> None:
        if "enum" in schema and value not in schema["enum"]:
            raise Refused(f"{where}: {value!r} is none of {', '.join(schema['enum'])}")
        kind = schema.get("format", "")
        if kind in BOUNDS:
            self._check_integer(where, schema, value)
        if kind in SHAPES and not re.fullmatch(SHAPES[kind], value):
            raise Refused(f"{where}: {value!r} is no {kind}")
        if "pattern" in schema and not re.search(f"^(?:{schema['pattern']})$", value):
            raise Refused(f"{where}: {value!r} does not match {schema['pattern']}")

    def _check_integer(self, where: str, schema: dict[str, Any], text: str) -> None:
        if not re.fullmatch(r"-?\d+", text):
            raise Refused(f"{where}: {text!r} is no integer")
        low, high = BOUNDS[schema.get("format", "int64")]
        low, high = max(low, int(schema.get("minimum", low))), min(high, int(schema.get("maximum", high)))
        if not low <= int(text) <= high:
            raise Refused(f"{where}: {text} is not between {low} and {high}")


def _placeholder(part: str, parameters: Mapping[str, dict[str, Any]]) -> str:
    """Return the pattern of a placeholder.

    `{project}` is one segment of a path unless its pattern allows more; `{+name}` is what its pattern says.
    """
    name = part.strip("{}+")
    pattern = parameters.get(name, {}).get("pattern", "")
    inner = pattern.removeprefix("^").removesuffix("$") or (".+" if "+" in part else "[^/:]+")
    return f"(?P<{name}>{inner})"


def _short(value: Any) -> str:
    return json.dumps(value)[:80]


@functools.cache
def api(service: str) -> Api:
    """Return an API by the name that GoogleApi gives it. Raise KeyError for one whose document is not in use here."""
    documents = Path(googleapiclient.discovery_cache.__file__).parent / "documents"
    return Api(json.loads((documents / f"{service}.{VERSIONS[service]}.json").read_text()))

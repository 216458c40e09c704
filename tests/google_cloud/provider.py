"""The plugin that the Pulumi CLI starts: provider.proto over gRPC, with the cloud of daemon.py behind it.

install.py puts a script into a test's own PULUMI_HOME that runs this file as `provider.py PACKAGE VERSION ENGINE`. It
calls nothing but the daemon that GPT2_TRAINING_STANDIN names, which must be on this machine.
"""

import importlib.util
import os
import signal
import sys
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
if __name__ == "__main__":
    # Every CLI command starts this process. It needs only the SDK's generated protocol, and running the __init__ of
    # `pulumi` would more than double its start.
    for _name in ("pulumi", "pulumi.runtime"):
        _spec = importlib.util.find_spec("pulumi") if _name == "pulumi" else None
        _module = types.ModuleType(_name)
        _parent = Path(_spec.origin).parent if _spec and _spec.origin else Path(sys.modules["pulumi"].__path__[0])
        _module.__path__ = [str(_parent if _name == "pulumi" else _parent / "runtime")]
        sys.modules[_name] = _module

import grpc  # type: ignore[import-untyped]
from google.protobuf import empty_pb2, struct_pb2  # type: ignore[import-untyped]
from pulumi.runtime.proto import plugin_pb2, provider_pb2, provider_pb2_grpc

from tests.google_cloud import diff, images, names, schema
from tests.google_cloud.client import Client, Refused

Json = dict[str, Any]
INVOKES = {  # each look-up with its arguments and the required ones
    "gcp:storage/getBuckets:getBuckets": ({"prefix", "project"}, set()),
    "gcp:storage/getBucketObjects:getBucketObjects": ({"bucket", "prefix", "matchGlob"}, {"bucket"}),
    "gcp:storage/getBucketObjectContent:getBucketObjectContent": ({"bucket", "name", "content"}, {"bucket", "name"}),
    "gcp:artifactregistry/getRepositories:getRepositories": ({"location", "nameFilter", "project"}, set()),
}


def plain(value: struct_pb2.Value) -> Any:
    """Return a protobuf value as JSON; whole numbers are integers."""
    kind = value.WhichOneof("kind")
    if kind == "struct_value":
        return unpack(value.struct_value)
    if kind == "list_value":
        return [plain(item) for item in value.list_value.values]
    if kind == "number_value":
        return int(value.number_value) if value.number_value.is_integer() else value.number_value
    return None if kind in (None, "null_value") else getattr(value, kind)


def unpack(struct: struct_pb2.Struct) -> Json:
    return {key: plain(value) for key, value in struct.fields.items()}


def pack(props: Json) -> struct_pb2.Struct:
    struct = struct_pb2.Struct()
    struct.update(props)
    return struct


def type_of(urn: str) -> str:
    return urn.split("::")[2].rpartition("$")[2]


def name_of(urn: str) -> str:
    return urn.split("::", 3)[3]


class Provider(provider_pb2_grpc.ResourceProviderServicer):
    """One provider. Secrets and outputs arrive as plain values: the engine marks them again by itself."""

    def __init__(self, package: str, version: str, client: Client) -> None:
        self.package, self.version, self.client = package, version, client
        self.project = self.region = ""
        self.labels: dict[str, str] = {}

    def Handshake(self, request: Any, context: Any) -> Any:
        return provider_pb2.ProviderHandshakeResponse(supports_autonaming_configuration=True)

    def GetPluginInfo(self, request: Any, context: Any) -> Any:
        return plugin_pb2.PluginInfo(version=self.version)

    def Attach(self, request: Any, context: Any) -> Any:
        return empty_pb2.Empty()

    def Cancel(self, request: Any, context: Any) -> Any:
        return empty_pb2.Empty()

    # The provider's own configuration. ---------------------------------------------------------------------------

    def CheckConfig(self, request: Any, context: Any) -> Any:
        failures = []
        if self.package == "gcp":
            known = schema.sdk()[schema.PROVIDER]["properties"]
            failures = [(k, "unknown property") for k in request.news.fields if k not in known and k != "version"]
            if not unpack(request.news).get("project"):
                failures.append(("project", "set `gcp:project` to the id of a project"))
        return provider_pb2.CheckResponse(inputs=request.news, failures=self._failures(failures))

    def DiffConfig(self, request: Any, context: Any) -> Any:
        olds, news = unpack(request.old_inputs), unpack(request.news)
        changed = [k for k in sorted({*olds, *news}) if k != "version" and olds.get(k) != news.get(k)]
        some, none = provider_pb2.DiffResponse.DIFF_SOME, provider_pb2.DiffResponse.DIFF_NONE
        return provider_pb2.DiffResponse(changes=some if changed else none, diffs=changed)

    def Configure(self, request: Any, context: Any) -> Any:
        given = {key.rpartition(":")[2]: value for key, value in request.variables.items()}
        self.project, self.region = given.get("project", ""), given.get("region", "")
        self.labels = diff.default_labels(given)
        return provider_pb2.ConfigureResponse(supportsPreview=True)

    # Resources. ---------------------------------------------------------------------------------------------------

    def Check(self, request: Any, context: Any) -> Any:
        token, news = type_of(request.urn), unpack(request.news)
        kind = names.KINDS.get(token)
        if kind and kind.name and news.get(kind.name) is None and not news.get("namePrefix"):
            proposed = request.autonaming.proposed_name or f"{name_of(request.urn)}-{request.randomSeed.hex()[:7]}"
            news[kind.name] = unpack(request.olds).get(kind.name) or proposed
        return provider_pb2.CheckResponse(inputs=pack(news), failures=self._failures(schema.problems(token, news)))

    def Diff(self, request: Any, context: Any) -> Any:
        token, state = type_of(request.urn), unpack(request.olds)
        olds, news = unpack(request.old_inputs), unpack(request.news)
        ignored = tuple(request.ignoreChanges)
        if state.get(names.PARTIAL):
            olds = {**news, **olds}
        found = diff.changes(token, olds, news, ignored)
        found |= diff.computed_changes(token, state, self._fill(request.urn, news, context), ignored)
        detailed = {
            path: provider_pb2.PropertyDiff(
                kind=provider_pb2.PropertyDiff.Kind.Value(kind), inputDiff=path.split(".")[0] not in diff.COMPUTED
            )
            for path, kind in found.items()
        }
        replaces = [path for path, kind in found.items() if kind.endswith("_REPLACE")]
        some, none = provider_pb2.DiffResponse.DIFF_SOME, provider_pb2.DiffResponse.DIFF_NONE
        return provider_pb2.DiffResponse(
            changes=some if found else none,
            diffs=sorted({path.split(".")[0].split("[")[0] for path in found}),
            replaces=replaces,
            detailedDiff=detailed,
            hasDetailedDiff=True,
            deleteBeforeReplace=bool(replaces) and diff.same_fixed_name(token, name_of(request.urn), olds, news),
        )

    def Create(self, request: Any, context: Any) -> Any:
        token, inputs = type_of(request.urn), unpack(request.properties)
        props = self._fill(request.urn, inputs, context)
        if request.preview:
            later = dict.fromkeys(names.output_names(token), names.UNKNOWN)
            if token == names.IMAGE and inputs.get("buildOnPreview"):
                later |= {"digest": images.digest_of(props)}
            return provider_pb2.CreateResponse(properties=pack({**later, **props}))
        made = self._ask(context, "create", request.urn, token=token, props=_absolute(props), given=sorted(inputs))
        return provider_pb2.CreateResponse(id=made["id"], properties=pack(self._shown(made["state"], inputs)))

    def Read(self, request: Any, context: Any) -> Any:
        token, olds = type_of(request.urn), unpack(request.inputs)
        found = self._ask(context, "read", request.urn, token=token, id=request.id)
        if found is None:
            return provider_pb2.ReadResponse(id="")
        state = self._shown(found["state"], olds)
        inputs = {k: state[k] for k in found["given"] if k in state}
        if not olds:  # this is an import: fields that only the provider knows have their defaults
            inputs = {k: names.VIRTUAL.get(k, v) for k, v in inputs.items()}
        elif state.get(names.PARTIAL):
            inputs = {**olds, **inputs}
        return provider_pb2.ReadResponse(id=request.id, properties=pack(state), inputs=pack(inputs))

    def Update(self, request: Any, context: Any) -> Any:
        token, news = type_of(request.urn), unpack(request.news)
        olds, state = unpack(request.old_inputs), unpack(request.olds)
        props = self._fill(request.urn, news, context)
        if request.preview:
            later = dict.fromkeys(diff.unknown_after_update(token), names.UNKNOWN)
            return provider_pb2.UpdateResponse(properties=pack({**state, **later, **props}))
        changed = {k: v for k, v in news.items() if not diff.same(olds.get(k), v)}
        changed |= {k: props[k] for k in diff.COMPUTED if k in props and state.get(k) != props[k]}
        removed = [k for k in olds if k not in news]
        asked = {"token": token, "id": request.id, "changed": _absolute(changed), "removed": removed}
        made = self._ask(context, "update", request.urn, **asked)
        return provider_pb2.UpdateResponse(properties=pack(self._shown(made["state"], news)))

    def Delete(self, request: Any, context: Any) -> Any:
        self._ask(context, "delete", request.urn, token=type_of(request.urn), id=request.id)
        return empty_pb2.Empty()

    def Invoke(self, request: Any, context: Any) -> Any:
        args = unpack(request.args)
        known, required = INVOKES.get(request.tok, (set(args), set()))
        wrong = [(k, "unknown argument") for k in set(args) - known]
        wrong += [(k, "missing required argument") for k in required - {k for k, v in args.items() if v}]
        if wrong:
            return provider_pb2.InvokeResponse(failures=self._failures(wrong))
        filled = {"project": self.project, "region": self.region, **{k: v for k, v in args.items() if v is not None}}
        answer = self._ask(context, "invoke", "", token=request.tok, args=filled)
        return provider_pb2.InvokeResponse(**{"return": pack(answer)})

    # ---------------------------------------------------------------------------------------------------------------

    def _fill(self, urn: str, inputs: Json, context: Any) -> Json:
        token = type_of(urn)
        if token != names.IMAGE:
            return names.fill(token, inputs, self.project, self.region, self.labels)
        try:
            tags = inputs.get("tags") or [name_of(urn)]
            return {"name": tags[0], **inputs, "contextHash": images.context_hash(inputs, Path.cwd())}
        except ValueError as error:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
            raise

    def _ask(self, context: Any, operation: str, urn: str, **body: Any) -> Any:
        try:
            return self.client.call(f"/provider/{operation}", {**body, "project": self.project})
        except Refused as error:
            said = f"{operation} of {type_of(urn).rpartition(':')[2]} {name_of(urn)!r}: {error}" if urn else ""
            # The real provider wraps the error of a look-up in these lines.
            wrapped = f"invoking {body['token']}: 1 error occurred:\n\t* {error}\n\n"
            context.abort(grpc.StatusCode.UNKNOWN, said or wrapped)
            raise

    @staticmethod
    def _shown(state: Json, inputs: Json) -> Json:
        """Return the cloud's state for Pulumi's: an unchanged asset stays as the program wrote it."""
        return {
            k: inputs[k] if diff.is_asset(v) and diff.same(inputs.get(k), v) else v
            for k, v in state.items()
            if v is not None
        }

    @staticmethod
    def _failures(problems: "list[schema.Problem]") -> list[Any]:
        return [provider_pb2.CheckFailure(property=path, reason=why) for path, why in problems]


def _absolute(props: Json) -> Json:
    """Return props with file assets that another process can open."""
    return {
        k: {**v, "path": str(Path(v["path"]).absolute())} if diff.is_asset(v) and "path" in v else v
        for k, v in props.items()
    }


def serve(package: str, version: str) -> None:
    url = os.environ.get("GPT2_TRAINING_STANDIN", "")
    if urlsplit(url).hostname not in ("127.0.0.1", "localhost", "::1"):
        sys.exit(
            f"this is not Google Cloud but the stand-in of gpt2-training's tests: GPT2_TRAINING_STANDIN is {url!r}, "
            "not the address of a daemon on this machine"
        )
    signal.signal(signal.SIGINT, lambda *_: os._exit(0))
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    limits = [("grpc.max_receive_message_length", 400 << 20), ("grpc.max_send_message_length", 400 << 20)]
    server = grpc.server(ThreadPoolExecutor(64), options=limits)
    provider_pb2_grpc.add_ResourceProviderServicer_to_server(Provider(package, version, Client(url)), server)
    port = server.add_insecure_port("127.0.0.1:0")
    parent = os.getppid()
    server.start()
    print(port, flush=True)
    while os.getppid() == parent:  # a pulumi that was killed sends no interrupt
        server.wait_for_termination(timeout=2)
    os._exit(0)


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2])

"""Container images: the registry's repositories, and the images that docker-build would have built and pushed."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from pathspec import PathSpec

from tests.google_cloud import names
from tests.google_cloud.cloud import Behaviour, Cloud
from tests.google_cloud.errors import CloudError

Json = dict[str, Any]
REPOSITORY = "gcp:artifactregistry/repository:Repository"
_TAG = re.compile(
    r"(?P<location>[a-z0-9-]+)-docker\.pkg\.dev/(?P<project>[^/]+)/(?P<repository>[^/]+)/(?P<image>[^:@]+)"
)


def context_hash(props: Json, folder: Path) -> str:
    """Return the SHA-256 of a build's files: the Dockerfile and the context's files that .dockerignore leaves.

    Relative paths are those of `folder`; unknown inputs give an unknown hash. ValueError: a file is missing.
    """
    context, dockerfile = props.get("context") or {}, props.get("dockerfile") or {}
    if names.UNKNOWN in (context, dockerfile, context.get("location"), dockerfile.get("location")):
        return names.UNKNOWN
    root = folder / context.get("location", ".")
    recipe = folder / dockerfile["location"] if dockerfile.get("location") else root / "Dockerfile"
    digest = hashlib.sha256()
    if dockerfile.get("inline"):
        digest.update(dockerfile["inline"].encode())
    elif not recipe.is_file():
        raise ValueError(f"failed to read dockerfile: {recipe}: no such file")
    else:
        digest.update(recipe.read_bytes())
    if not root.is_dir():
        raise ValueError(f"context.location: {root} is not a folder")
    ignore = ignore_rules(recipe.with_name(recipe.name + ".dockerignore")) or ignore_rules(root / ".dockerignore")
    for name in context_files(root, ignore):
        digest.update(f"\n{name}\n".encode() + (root / name).read_bytes())
    return digest.hexdigest()


def context_files(root: Path, rules: list[str]) -> list[str]:
    """Return the files that BuildKit takes under these rules of a .dockerignore, sorted.

    They are gitignore's patterns, but all start at the root, and the last one that fits a path or a folder above it
    decides.
    """
    patterns = []
    for rule in rules:
        pattern = ("!/" if rule.startswith("!") else "/") + rule.removeprefix("!").strip().strip("/")
        patterns += [pattern, f"{pattern}/**"]
    names = (path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
    return sorted(PathSpec.from_lines("gitignore", patterns).match_files(names, negate=True))


def ignore_rules(path: Path) -> list[str]:
    """Return the patterns of a .dockerignore; none where there is no such file."""
    lines = path.read_text().splitlines() if path.is_file() else []
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def digest_of(props: Json) -> str:
    """Return the digest that the image will have: the same inputs give the same image here."""
    keys = ("contextHash", "buildArgs", "platforms", "target", "labels")
    content = json.dumps({k: props.get(k) for k in keys}, sort_keys=True)
    return "sha256:" + hashlib.sha256(content.encode()).hexdigest()


class Image(Behaviour):
    """docker-build:index:Image; cloud.images is the registry."""

    def create(self, id: str, props: Json) -> Json:  # noqa: A002
        digest, tags = digest_of(props), props.get("tags") or []
        if props.get("push"):
            for tag in tags:
                self._find_repository(tag)
            with self.cloud.lock:
                for tag in tags:
                    self.cloud.images[tag] = digest
                    self.cloud.images[f"{_name(tag)}@{digest}"] = digest
        return {"digest": digest, "ref": f"{tags[0]}@{digest}" if tags else ""}

    def read(self, id: str, state: Json) -> Json | None:  # noqa: A002
        lost = [t for t in state.get("tags") or [] if f"{_name(t)}@{state['digest']}" not in self.cloud.images]
        return None if state.get("push") and lost else state or None

    def update(self, id: str, olds: Json, news: Json) -> Json:  # noqa: A002
        return self.create(id, news)

    def delete(self, id: str, state: Json) -> None:  # noqa: A002
        with self.cloud.lock:
            for name in [n for n, digest in self.cloud.images.items() if digest == state.get("digest")]:
                del self.cloud.images[name]

    def _find_repository(self, tag: str) -> None:
        found = _TAG.match(tag)
        if not found:
            raise CloudError(400, "invalid", f"{tag} is no address in Artifact Registry")
        wanted = f"projects/{found['project']}/locations/{found['location']}/repositories/{found['repository']}"
        if not any(r.id == wanted for r in self.cloud.find(REPOSITORY)):
            raise CloudError(404, "notFound", f'failed to push {tag}: name unknown: Repository "{wanted}" not found')


class Repository(Behaviour):
    def delete(self, id: str, state: Json) -> None:  # noqa: A002
        """Delete the repository with its images."""
        with self.cloud.lock:
            for name in [n for n in self.cloud.images if n.startswith(state["registryUri"] + "/")]:
                del self.cloud.images[name]


def _name(tag: str) -> str:
    return re.sub(r":[^:/]+$", "", tag)


def register(cloud: Cloud) -> None:
    cloud.behaviours[names.IMAGE] = Image(cloud, names.IMAGE)
    cloud.behaviours[REPOSITORY] = Repository(cloud, REPOSITORY)

    def get_repositories(args: Json) -> Json:
        project, location = args["project"], args.get("location") or args["region"]
        cloud.require_api(project, "artifactregistry")
        keep = re.compile(args.get("nameFilter") or "")
        found = [
            {
                "id": r.id,
                "name": r.id,
                "repositoryId": r.state["repositoryId"],
                "format": r.state["format"],
                "description": r.state.get("description", ""),
                "createTime": "",
                "sizeBytes": "0",
                "updateTime": "",
            }
            for r in cloud.find(REPOSITORY, project=project, location=location)
            if keep.search(r.state["repositoryId"])
        ]
        same = {"project": project, "location": location, "nameFilter": args.get("nameFilter")}
        return {"id": f"projects/{project}/locations/{location}/repositories", "repositories": found, **same}

    cloud.invokes["gcp:artifactregistry/getRepositories:getRepositories"] = get_repositories

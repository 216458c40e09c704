"""References between resources: a target must exist (404), and a resource in use cannot be deleted (400)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from tests.google_cloud.errors import CloudError

if TYPE_CHECKING:
    from tests.google_cloud.cloud import Cloud, Resource


class Reference(NamedTuple):
    user: str
    path: str  # dots separate levels; lists are searched through
    target: str
    blocks: bool  # if set, the target cannot be deleted while the user exists


_NETWORK, _SUBNETWORK = "gcp:compute/network:Network", "gcp:compute/subnetwork:Subnetwork"
_TEMPLATE = "gcp:compute/regionInstanceTemplate:RegionInstanceTemplate"
_GROUP = "gcp:compute/regionInstanceGroupManager:RegionInstanceGroupManager"
_REPOSITORY = "gcp:artifactregistry/repository:Repository"
REFERENCES = (
    Reference(_SUBNETWORK, "network", _NETWORK, True),
    Reference("gcp:compute/firewall:Firewall", "network", _NETWORK, True),
    Reference("gcp:compute/router:Router", "network", _NETWORK, True),
    Reference("gcp:compute/routerNat:RouterNat", "router", "gcp:compute/router:Router", False),
    Reference(_TEMPLATE, "networkInterfaces.network", _NETWORK, False),
    Reference(_TEMPLATE, "networkInterfaces.subnetwork", _SUBNETWORK, False),
    Reference(_TEMPLATE, "resourcePolicies", "gcp:compute/resourcePolicy:ResourcePolicy", True),
    Reference(_GROUP, "versions.instanceTemplate", _TEMPLATE, True),
    Reference("gcp:artifactregistry/repositoryIamMember:RepositoryIamMember", "repository", _REPOSITORY, False),
    Reference(
        "gcp:serviceaccount/iAMMember:IAMMember", "serviceAccountId", "gcp:serviceaccount/account:Account", False
    ),
)


def check_targets(cloud: Cloud, token: str, state: dict[str, Any]) -> None:
    """Raise 404 where a resource names another one that does not exist."""
    for reference in REFERENCES:
        if reference.user == token:
            known = cloud.find(reference.target)
            for value in _values(state, reference.path):
                if not any(_is(value, target.id) for target in known):
                    raise CloudError(404, "notFound", f"The resource '{value}' was not found")


def check_unused(cloud: Cloud, target: Resource) -> None:
    """Raise 400 while another resource uses this one."""
    for reference in REFERENCES:
        if reference.target == target.token and reference.blocks:
            for user in cloud.find(reference.user):
                if any(_is(value, target.id) for value in _values(user.state, reference.path)):
                    raise CloudError(
                        400,
                        "resourceInUseByAnotherResource",
                        f"The resource '{target.id}' is already being used by '{user.id}'",
                    )


def _values(value: Any, path: str) -> Iterator[str]:
    if isinstance(value, list):
        for item in value:
            yield from _values(item, path)
    elif path and isinstance(value, dict):
        key, _, rest = path.partition(".")
        yield from _values(value.get(key), rest)
    elif not path and isinstance(value, str):
        yield value


def _is(value: str, id: str) -> bool:  # noqa: A002
    """Return whether a self link, an id or a bare name means this id. A template's link may end in ?uniqueId=..."""
    plain = value.partition("?")[0]
    if "projects/" in plain:
        return plain[plain.index("projects/") :] == id
    return plain == id.rpartition("/")[2]

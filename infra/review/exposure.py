"""Find out whom a declared resource gives access, for the policies and the review.

All functions are pure: they need a resource's type and its inputs with Pulumi's names.
"""

import ipaddress
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

FIREWALL = "gcp:compute/firewall:Firewall"
ADDRESSES = ("gcp:compute/address:Address", "gcp:compute/globalAddress:GlobalAddress")
EVERYBODY = ("allUsers", "allAuthenticatedUsers")
SOURCES = ("sourceRanges", "sourceTags", "sourceServiceAccounts")
# Addresses that the internet does not route.
PRIVATE = [
    ipaddress.ip_network(text)
    for text in (
        *("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16"),
        *("fc00::/7", "fe80::/10"),
    )
]
# More addresses than one organization has, by IP version. A limit of their sum also finds the internet in many ranges.
MOST_ADDRESSES = {4: 2 ** (32 - 8), 6: 2 ** (128 - 16)}


class Binding(NamedTuple):
    role: str
    members: list[str]
    condition: str  # the expression of its IAM condition; empty if there is none


def public_ranges(ranges: Sequence[Any]) -> list[str]:
    """Return the public ranges, if together they have more addresses than one organization. Ignore unknown ranges."""
    wide = []
    for version, most in MOST_ADDRESSES.items():
        public = {text: network for text in ranges if (network := _network(text, version)) and not _private(network)}
        if sum(network.num_addresses for network in ipaddress.collapse_addresses(public.values())) > most:
            wide += list(public)
    return wide


def _network(text: Any, version: int) -> Any:
    """Return the network, or None if `text` is of the other IP version or not a network."""
    try:
        network = ipaddress.ip_network(text, strict=False) if isinstance(text, str) else None
    except ValueError:
        return None
    return network if network and network.version == version else None


def _private(network: Any) -> bool:
    return any(own.version == network.version and network.subnet_of(own) for own in PRIVATE)


def open_sources(firewall: Mapping[str, Any]) -> str:
    """Return the ranges by which a firewall rule lets everybody in, "no source" if it names none, or else ""."""
    if firewall.get("direction") == "EGRESS" or firewall.get("disabled") is True or not firewall.get("allows"):
        return ""
    given = firewall.get("sourceRanges")
    if wide := public_ranges(given if isinstance(given, list) else ()):
        return ", ".join(wide)
    # For Google, a rule without a source allows all sources.
    return "" if any(firewall.get(key) for key in SOURCES) else "no source"


def public_addresses(kind: str, inputs: Mapping[str, Any]) -> Iterator[str]:
    """Yield the inputs that give a resource a public address: addressType, networkInterfaces.accessConfigs."""
    if kind in ADDRESSES and inputs.get("addressType") != "INTERNAL":
        yield "addressType"
    for interface in objects(inputs.get("networkInterfaces")):
        for key in ("accessConfigs", "ipv6AccessConfigs"):
            if interface.get(key):
                yield f"networkInterfaces.{key}"


def grants(kind: str, inputs: Mapping[str, Any]) -> Iterator[Binding]:
    """Yield each role that an IAM resource (a member, a binding or a whole policy) grants."""
    if "iam" not in kind.lower():
        return
    if isinstance(inputs.get("role"), str):
        members = [inputs.get("member"), *_list(inputs.get("members"))]
        yield Binding(inputs["role"], [str(member) for member in members if member], _condition(inputs))
    try:
        policy = json.loads(inputs.get("policyData") or "{}")
    except (TypeError, ValueError):  # not known yet
        return
    for binding in objects(policy.get("bindings") if isinstance(policy, dict) else None):
        members = [str(member) for member in _list(binding.get("members"))]
        yield Binding(str(binding.get("role")), members, _condition(binding))


def _condition(holder: Mapping[str, Any]) -> str:
    condition = holder.get("condition")
    if isinstance(condition, dict):
        return str(condition.get("expression", ""))
    return str(condition or "")  # not known yet


def open_lists(inputs: Mapping[str, Any]) -> Iterator[str]:
    """Yield the entries of a Cloud Storage access list that mean everybody: `entity: allUsers`."""
    for key in ("entity", "roleEntities"):
        for entry in _list(inputs.get(key)) or [inputs.get(key)]:
            if str(entry).rpartition(":")[2] in EVERYBODY:
                yield f"{key}: {entry}"
    for key in ("predefinedAcl", "defaultAcl"):
        if str(inputs.get(key)).startswith(("public", "authenticated")):
            yield f"{key}: {inputs[key]}"


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def objects(value: Any) -> Iterator[dict[str, Any]]:
    """Yield the objects of a list. An unknown value (not a list yet) has none."""
    return (item for item in _list(value) if isinstance(item, dict))

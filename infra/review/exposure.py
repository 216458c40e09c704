"""Who a declared resource lets in, for the policies and the review. Pure: a type and inputs with Pulumi's names."""

import ipaddress
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

FIREWALL = "gcp:compute/firewall:Firewall"
ADDRESSES = ("gcp:compute/address:Address", "gcp:compute/globalAddress:GlobalAddress")
EVERYBODY = ("allUsers", "allAuthenticatedUsers")
SOURCES = ("sourceRanges", "sourceTags", "sourceServiceAccounts")
# Addresses that the internet does not route to anybody.
PRIVATE = [
    ipaddress.ip_network(text)
    for text in (
        *("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16"),
        *("fc00::/7", "fe80::/10"),
    )
]
# No one's own network has more: half the internet is two ranges, and all of it can be said in many. By IP version.
MOST = {4: 2 ** (32 - 8), 6: 2 ** (128 - 16)}


def wide(ranges: Sequence[Any]) -> list[str]:
    """Those of the ranges that are public, if together they are more than anybody's own; what is unknown is none."""
    found = []
    for version, most in MOST.items():
        public = {text: network for text in ranges if (network := _network(text, version)) and not _private(network)}
        if sum(network.num_addresses for network in ipaddress.collapse_addresses(public.values())) > most:
            found += list(public)
    return found


def _network(text: Any, version: int) -> Any:
    """None if it is of the other version, or no network."""
    try:
        network = ipaddress.ip_network(text, strict=False) if isinstance(text, str) else None
    except ValueError:
        return None
    return network if network and network.version == version else None


def _private(network: Any) -> bool:
    return any(own.version == network.version and network.subnet_of(own) for own in PRIVATE)


def lets_everybody_in(firewall: Mapping[str, Any]) -> str:
    """By which ranges, or that it names no source; empty if it does not."""
    if firewall.get("direction") == "EGRESS" or firewall.get("disabled") is True or not firewall.get("allows"):
        return ""
    given = firewall.get("sourceRanges")
    if found := wide(given if isinstance(given, list) else ()):
        return ", ".join(found)
    # Google takes a rule that names no source for one that means all.
    return "" if any(firewall.get(key) for key in SOURCES) else "no source"


def public_addresses(kind: str, inputs: Mapping[str, Any]) -> Iterator[str]:
    """What gives a thing an address on the internet: addressType, networkInterfaces.accessConfigs."""
    if kind in ADDRESSES and inputs.get("addressType") != "INTERNAL":
        yield "addressType"
    for interface in objects(inputs.get("networkInterfaces")):
        for key in ("accessConfigs", "ipv6AccessConfigs"):
            if interface.get(key):
                yield f"networkInterfaces.{key}"


def grants(kind: str, inputs: Mapping[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """Role and members of what grants something: a member, a binding, or a whole policy."""
    if "iam" not in kind.lower():
        return
    if isinstance(inputs.get("role"), str):
        members = [inputs.get("member"), *_list(inputs.get("members"))]
        yield inputs["role"], [str(member) for member in members if member]
    try:
        policy = json.loads(inputs.get("policyData") or "{}")
    except (TypeError, ValueError):  # not known yet
        return
    for binding in objects(policy.get("bindings") if isinstance(policy, dict) else None):
        yield str(binding.get("role")), [str(member) for member in _list(binding.get("members"))]


def open_lists(inputs: Mapping[str, Any]) -> Iterator[str]:
    """Entries of an access list of Cloud Storage that stand for everybody: `entity: allUsers`."""
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
    """Those of a list; nothing of what is none, as it is not known yet."""
    return (item for item in _list(value) if isinstance(item, dict))

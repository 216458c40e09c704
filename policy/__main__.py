"""The policy pack for the CLI: `pulumi preview --policy-pack policy`. The rules themselves are in rules.py."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pulumi_policy import (  # type: ignore[import-not-found]
    EnforcementLevel,
    PolicyPack,
    PolicyResource,
    ReportViolation,
    ResourceValidationArgs,
    ResourceValidationPolicy,
    StackValidationArgs,
    StackValidationPolicy,
)
from pulumi_policy.proxy import UnknownValueError  # type: ignore[import-not-found]

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the CLI starts it in this folder

from infra.review.values import UNKNOWN
from policy.rules import RULES, STACK_RULES, Resource, Rule, StackRule

# For rules about a whole stack, the CLI passes the outputs of its resources. They lack the inputs of components, which
# are the settings of the stack file. So this keeps each resource's inputs from the earlier call about it alone.
DECLARED: dict[str, Resource] = {}


def plain(value: Any) -> Any:
    """Return properties as rules.py needs them. The CLI's own objects raise if a value is not known yet."""
    if isinstance(value, Mapping):
        return {key: _known(value, key) for key in value}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_known(value, index) for index in range(len(value))]
    return value


def _known(container: Any, key: Any) -> Any:
    try:
        return plain(container[key])
    except UnknownValueError:
        return UNKNOWN


def resource_policy(rule: Rule) -> ResourceValidationPolicy:
    """Return a rule about one resource as the CLI needs it."""

    def validate(args: ResourceValidationArgs, report: ReportViolation) -> None:
        resource = DECLARED[args.urn] = Resource(args.urn, args.resource_type, args.name, plain(args.props))
        for message in rule.violations(resource):
            report(message, None)

    return ResourceValidationPolicy(rule.name, rule.description, validate, enforcement_level=level(rule))


def stack_policy(rule: StackRule) -> StackValidationPolicy:
    """Return a rule about a stack as the CLI needs it."""

    def validate(args: StackValidationArgs, report: ReportViolation) -> None:
        resources = [DECLARED.get(resource.urn) or _deployed(resource) for resource in args.resources]
        for resource, message in rule.violations(resources):
            report(message, resource.urn)

    return StackValidationPolicy(rule.name, rule.description, validate, enforcement_level=level(rule))


def _deployed(resource: PolicyResource) -> Resource:
    """Return a resource with its outputs, for commands that run no program, such as `pulumi policy analyze`."""
    return Resource(resource.urn, resource.resource_type, resource.name, plain(resource.props))


def level(rule: Rule | StackRule) -> EnforcementLevel:
    return EnforcementLevel(rule.level)


PolicyPack("gpt2-training", [*map(resource_policy, RULES), *map(stack_policy, STACK_RULES)])

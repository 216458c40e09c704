"""The policy pack for the CLI: `pulumi preview --policy-pack policy`. All that it knows is in rules.py."""

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

from infra.review.values import UNKNOWN
from policy.rules import RULES, STACK_RULES, Resource, Rule, StackRule

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the CLI starts it in this folder
# The CLI asks about a whole stack by the outputs of its resources, and a component's inputs, the stack file's words,
# are not among them: so what each resource was declared with is kept here when it is asked about by itself.
DECLARED: dict[str, Resource] = {}


def plain(value: Any) -> Any:
    """Properties as rules.py wants them; the CLI's raise where a value is not known yet."""
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
    def validate(args: ResourceValidationArgs, report: ReportViolation) -> None:
        resource = DECLARED[args.urn] = Resource(args.urn, args.resource_type, args.name, plain(args.props))
        for message in rule.look(resource):
            report(message, None)

    return ResourceValidationPolicy(rule.name, rule.description, validate, enforcement_level=level(rule))


def stack_policy(rule: StackRule) -> StackValidationPolicy:
    def validate(args: StackValidationArgs, report: ReportViolation) -> None:
        resources = [DECLARED.get(one.urn) or _deployed(one) for one in args.resources]
        for resource, message in rule.look(resources):
            report(message, resource.urn)

    return StackValidationPolicy(rule.name, rule.description, validate, enforcement_level=level(rule))


def _deployed(resource: PolicyResource) -> Resource:
    """Where there was no program, as in `pulumi policy analyze`, outputs are all there is."""
    return Resource(resource.urn, resource.resource_type, resource.name, plain(resource.props))


def level(rule: Rule | StackRule) -> EnforcementLevel:
    return EnforcementLevel(rule.level)


PolicyPack("gpt2-training", [*map(resource_policy, RULES), *map(stack_policy, STACK_RULES)])

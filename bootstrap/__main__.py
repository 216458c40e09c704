"""The Pulumi program of an owner, wiring only: the stack's own file -> accounts, roles, grants and the login."""

import sys
from pathlib import Path

import pulumi

# Pulumi starts this file in its own folder.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from infra import load
from infra.google.access import declare_access
from infra.stack.config import ConfigError

try:
    declare_access(load.from_file(pulumi.get_stack()))
except ConfigError as error:
    raise pulumi.RunError(str(error)) from None

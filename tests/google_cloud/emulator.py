"""Execute a workflow once. The Python of tools.workflows runs this; standard input has a JSON object, with

source: the workflow, in which addresses of Google may be replaced; argument: its argument;
token: the access token of the workflow's account; ahead: seconds from this machine's clock to the cloud's;
speed: a sleep of that many seconds takes one.

The last line of standard output is {"steps", "result"} or {"steps", "error"}; the lines before it are what sys.log was
given. A few things are not as Google's documents say in workflows-emulator 1.10.0, and are put right here: expressions
know null, true and false, an expression that is a whole value keeps its type, and a map in a map is a map.
"""

import collections
import json
import re
import sys
import time
import traceback
from typing import Any

import yaml
from google.oauth2.credentials import Credentials
from workflows_emulator import main, render
from workflows_emulator.lib import helpers, http_utils, sys_utils
from workflows_emulator.utils import ContextDict

STEPS = collections.Counter[str]()
WHOLE = re.compile(r"\$\{(.*)\}", re.DOTALL)


def billed(config: dict[str, Any]) -> int:
    """Return how many steps Google bills for a step: each variable of an assignment is one, blocks are none.

    cloud.google.com/workflows/pricing: calls, tries of calls, assignments and conditions count.
    """
    if any(block in config for block in ("try", "steps", "for")):
        return 0
    return len(config["assign"]) if "assign" in config else 1


def main_of(asked: dict[str, Any]) -> Any:
    def evaluate(value: str, context: dict[str, Any]) -> Any:
        found = WHOLE.fullmatch(value)
        if found is None:
            return value
        result = context[found[1]] if found[1] in context else render.run_code(found[1], variables(context))
        return json.loads(json.dumps(result)) if isinstance(result, dict | list) else result

    def variables(context: dict[str, Any]) -> dict[str, Any]:
        """Leave the subworkflows out: the emulator copies all of them at each step."""
        return {key: value for key, value in context.items() if not (isinstance(value, dict) and "steps" in value)}

    def assign(key: str, value: Any, context: dict[str, Any]) -> tuple[str, Any]:
        return assigned(key, value, variables(context))

    def sleep(seconds: float) -> None:
        time.sleep(seconds / asked["speed"])

    def log(text: str = "", severity: str = "INFO", **more: Any) -> None:
        print(severity, text or more, flush=True)

    def execute(step_id: str, config: dict[str, Any], context: dict[str, Any]) -> Any:
        STEPS["billed"] += billed(config)
        return execute_step(step_id, config, context)

    execute_step, main.execute_step = main.execute_step, execute
    render.STANDARD_LIBRARY.update({"null": None, "true": True, "false": False})
    assigned, main.assign_var = render.assign_var, assign
    render.render_str = evaluate
    helpers.TYPE_LOOKUP[ContextDict] = "map"
    main.sleep = sys_utils.sleep = sleep
    sys_utils.now = lambda: time.time() + asked["ahead"]
    sys_utils.log = log
    http_utils.default = lambda scopes: (Credentials(asked["token"]), None)
    workflow = yaml.load(asked["source"], yaml.CSafeLoader)
    (name,) = workflow["main"].get("params", ["none"])
    return main.execute_workflow(workflow, {name: asked["argument"]})


if __name__ == "__main__":
    try:
        outcome = {"result": main_of(json.load(sys.stdin))}
    except Exception as error:
        traceback.print_exc()
        outcome = {"error": str(getattr(error, "payload", error))}
    print(json.dumps({**outcome, "steps": STEPS["billed"]}), flush=True)

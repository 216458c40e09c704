"""Execute a workflow once. The Python of tools.workflows runs this; standard input has a JSON object, with

source: the workflow, in which addresses of Google may be replaced; argument: its argument;
token: the access token of the workflow's account; ahead: seconds from this machine's clock to the cloud's;
speed: a sleep of that many seconds takes one.

The last line of standard output is {"result"} or {"error"}, the lines before are what sys.log was given. A few things
are not as Google's documents say in workflows-emulator 1.10.0, and are put right here: expressions know null, true and
false, and an expression that is a whole value keeps its type.
"""

import json
import re
import sys
import time
import traceback
from typing import Any

import yaml
from google.oauth2.credentials import Credentials
from workflows_emulator import main, render
from workflows_emulator.lib import http_utils, sys_utils

WHOLE = re.compile(r"\$\{(.*)\}", re.DOTALL)


def main_of(asked: dict[str, Any]) -> Any:
    def evaluate(value: str, context: dict[str, Any]) -> Any:
        found = WHOLE.fullmatch(value)
        if found is None:
            return value
        result = render.run_code(found[1], context)
        return json.loads(json.dumps(result)) if isinstance(result, dict | list) else result

    def sleep(seconds: float) -> None:
        time.sleep(seconds / asked["speed"])

    def log(text: str = "", severity: str = "INFO", **more: Any) -> None:
        print(severity, text or more, flush=True)

    render.STANDARD_LIBRARY.update({"null": None, "true": True, "false": False})
    render.render_str = evaluate
    main.sleep = sys_utils.sleep = sleep
    sys_utils.now = lambda: time.time() + asked["ahead"]
    sys_utils.log = log
    http_utils.default = lambda scopes: (Credentials(asked["token"]), None)
    workflow = yaml.safe_load(asked["source"])
    (name,) = workflow["main"].get("params", ["none"])
    return main.execute_workflow(workflow, {name: asked["argument"]})


if __name__ == "__main__":
    try:
        outcome = {"result": main_of(json.load(sys.stdin))}
    except Exception as error:
        traceback.print_exc()
        outcome = {"error": str(getattr(error, "payload", error))}
    print(json.dumps(outcome), flush=True)

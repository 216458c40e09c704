"""Say what is wrong with the credentials of Google Cloud, and what to do."""

import json
import os
from pathlib import Path

LOGIN = "run `gcloud auth application-default login`, or set GOOGLE_APPLICATION_CREDENTIALS to a key file"
KEY_FILE = "GOOGLE_APPLICATION_CREDENTIALS"


def key_file_problem() -> str:
    """Return what is wrong with the key file that the environment names; "" if nothing is, or if it names none."""
    if not (path := os.environ.get(KEY_FILE)):
        return ""
    try:
        content = json.loads(Path(path).read_bytes())
    except OSError as error:
        return no_key_file(path, f"which cannot be read ({error.strerror})")
    except ValueError:
        return no_key_file(path, "which is not JSON")
    if not isinstance(content, dict) or "type" not in content:
        return no_key_file(path, "which has no `type`, as every key file has")
    return ""


def no_key_file(path: str, why: str) -> str:
    """Return the line for a key file that cannot be used. why: such as "which is not JSON"."""
    fix = "name a key file there, or unset it and run `gcloud auth application-default login`"
    return f"{KEY_FILE} names {path}, {why}; {fix}"

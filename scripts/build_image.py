"""Build the trainer's image with Cloud Build, for people without Docker, and print its digest for the stack file.

It uploads trainer/ to the stack's data bucket, builds there and pushes into the stack's repository. It makes bucket and
repository if necessary, so it can run before the first `pulumi up`. The tag is the code's hash: an image that is in the
registry already is not built again. Ctrl-C does not stop the build.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

from infra.google.retained import as_json, image_name, repository, repository_settings, stack_labels
from infra.stack.config import StackConfig
from scripts.support.build_context import pack
from scripts.support.common import CHECKOUT, UserError, google_stack, megabytes, run_main
from trainer.contract import paths
from trainer.contract.identity import code_hash
from trainer.gcloud.api import ApiError, GoogleApi
from trainer.storage.factory import open_storage

BUILDER = "gcr.io/cloud-builders/docker"
TIMEOUT = "3600s"
POLL = 5.0  # seconds
MOST_POLLS = 24  # until a repository exists
SAY_EVERY = 30.0  # seconds
RIGHTS = (
    "builds run as the project's default service account (gcloud builds get-default-service-account), which needs"
    " roles/storage.objectViewer on {bucket}, roles/artifactregistry.writer on {repository} and roles/logging.logWriter"
)
# https://cloud.google.com/build/docs/locations#restricted_regions_for_some_projects
RESTRICTED = (
    "some projects, new ones above all, may not build in every region: raise Cloud Build's quota Concurrent Build CPUs"
    " (Regional Public Pool) in {region}, or run `pulumi up` on a machine with Docker, which builds the image itself"
)
Say = Callable[[str], None]


def ensure_repository(api: GoogleApi, config: StackConfig, sleep: Callable[[float], None]) -> None:
    """Make the stack's repository unless it exists, as the stack declares it. `pulumi up` adopts it later.

    Raise UserError if it cannot be made.
    """
    if _has_repository(api, config):
        return
    settings = repository_settings(config.stack)
    body = {
        "format": settings["format"],
        "description": settings["description"],
        "cleanupPolicies": {policy["id"]: as_json(policy) for policy in settings["cleanup_policies"]},
        "labels": stack_labels(config.stack),
    }
    parent, _, name = repository(config).rpartition("/")
    try:
        api.call("artifactregistry", "POST", parent, query={"repositoryId": name}, body=body)
    except ApiError as error:
        raise UserError(
            f"the repository {name} cannot be made: {error}; run `gcloud services enable"
            f" artifactregistry.googleapis.com --project {config.project}`, and have roles/artifactregistry.admin"
        ) from None
    for _ in range(MOST_POLLS):
        if _has_repository(api, config):
            return
        sleep(POLL)
    raise UserError(f"the repository {name} was asked for and is not there yet; run this again in a minute")


def _has_repository(api: GoogleApi, config: StackConfig) -> bool:
    try:
        api.call("artifactregistry", "GET", repository(config))
    except ApiError as error:
        if error.status in (403, 404):  # 403: the API is off, or we may not look; making the repository tells which
            return False
        raise
    return True


def built(api: GoogleApi, config: StackConfig, tag: str) -> str | None:
    """Return the digest, sha256:…, of the image with this tag, or None if it is not in the registry."""
    try:
        image = api.call("artifactregistry", "GET", f"{repository(config)}/packages/trainer/tags/{tag}")
    except ApiError as error:
        if error.status != 404:
            raise
        return None
    return str(image["version"]).rpartition("/")[2]


def start(api: GoogleApi, config: StackConfig, tag: str, path: str, generation: int) -> str:
    """Start the build of the context at `path` in the data bucket. Return the build's full name."""
    image = f"{image_name(config)}:{tag}"
    bucket = config.data_bucket.removeprefix("gs://")
    body = {
        "source": {"storageSource": {"bucket": bucket, "object": path, "generation": str(generation)}},
        "steps": [{"name": BUILDER, "args": ["build", "--tag", image, "."], "env": ["DOCKER_BUILDKIT=1"]}],
        "images": [image],  # pushed after the last step
        "timeout": TIMEOUT,
        "options": {"logging": "CLOUD_LOGGING_ONLY"},
        "tags": [f"gpt2-{config.stack}"],
    }
    parent = f"projects/{config.project}/locations/{config.region}"
    operation = api.call("cloudbuild", "POST", f"{parent}/builds", body=body)
    return f"{parent}/builds/{operation['metadata']['build']['id']}"


def wait(
    api: GoogleApi,
    config: StackConfig,
    build: str,
    say: Say,
    clock: Callable[[], float],
    sleep: Callable[[float], None],
) -> str:
    """Follow a build to its end and return the image's digest. Raise UserError if the build fails."""
    began = last_line = clock()
    state, failed_polls = "", 0
    while True:
        # Ask for the state. Google may fail for a while.
        try:
            answer = api.call("cloudbuild", "GET", build)
            failed_polls = 0
        except ApiError as error:
            failed_polls += 1
            if failed_polls > 10 or error.status in (401, 403, 404):
                raise
            answer = {"status": state}
        # Report each change, and otherwise every SAY_EVERY seconds.
        new_state = answer.get("status", "STATUS_UNKNOWN")
        if new_state != state or clock() - last_line >= SAY_EVERY:
            log = f"; its log: {answer['logUrl']}" if not state and "logUrl" in answer else ""
            say(f"build {build.rpartition('/')[2]} {new_state} after {clock() - began:.0f} s{log}")
            state, last_line = new_state, clock()
        # End with the build.
        if new_state == "SUCCESS":
            return str(answer["results"]["images"][0]["digest"])
        if new_state in ("FAILURE", "INTERNAL_ERROR", "TIMEOUT", "CANCELLED", "EXPIRED"):
            raise UserError(_failure(config, answer))
        sleep(POLL)


def _failure(config: StackConfig, build: dict[str, Any]) -> str:
    info = build.get("failureInfo", {})
    why = info.get("detail") or build.get("statusDetail") or info.get("type") or "no reason was given"
    line = f"the build ended with {build['status']}: {' '.join(str(why).split())[:300]}"
    if info.get("type") in ("FETCH_SOURCE_FAILED", "PUSH_NOT_AUTHORIZED", "LOGGING_FAILURE") or "permission" in why:
        line += f"; {RIGHTS.format(bucket=config.data_bucket, repository=f'gpt2-{config.stack}')}"
    return f"{line}; its log: {build.get('logUrl', 'in the console, Cloud Build')}"


def build_image(
    config: StackConfig,
    say: Say,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> str:
    """Return the digest of the present code's image. Build the image unless it is in the registry.

    Raise UserError, ApiError or StorageError if that is not possible.
    """
    from scripts.support.buckets import ensure_bucket  # 0.1 s of imports, Google's library, that --help does not need

    api = GoogleApi()
    ensure_repository(api, config, sleep)
    folder = CHECKOUT / "trainer"
    tag = code_hash(folder)
    if (digest := built(api, config, tag)) is not None:
        say(f"already built: {image_name(config)}:{tag}")
        return digest
    ensure_bucket(config)
    context, path = pack(folder), paths.image_source(tag)
    generation = open_storage(config.data_bucket).write(path, context)
    say(f"uploaded: {config.data_bucket}/{path} ({megabytes(len(context))})")
    try:
        build = start(api, config, tag, path, generation)
    except ApiError as error:
        if error.status == 400 and "quota" in str(error):
            raise UserError(f"{error}; {RESTRICTED.format(region=config.region)}") from None
        if error.status not in (403, 404):
            raise
        fix = f"run `gcloud services enable cloudbuild.googleapis.com --project {config.project}`"
        raise UserError(f"{error}; {fix}, and have roles/cloudbuild.builds.editor") from None
    return wait(api, config, build, say, clock, sleep)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.build_image", description=__doc__)
    parser.add_argument("--stack", default="dev", help="the stack (default: %(default)s)")
    config = google_stack(parser.parse_args(arguments).stack)
    digest = build_image(config, lambda line: print(line, flush=True))
    print("to run it, write into the stack file, under config:")
    print(f"  gpt2-training:image: {image_name(config)}@{digest}")
    return 0


if __name__ == "__main__":
    run_main(main, ApiError)

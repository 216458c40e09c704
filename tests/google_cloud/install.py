"""Install the plugins into a PULUMI_HOME of a test's own; never into one that a person uses."""

import functools
import importlib.metadata
import json
import os
import shlex
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.google_cloud import schema

# Each service with the path of its base below the daemon's address; see trainer/gcloud/api.py.
SERVICES = {
    "ARTIFACTREGISTRY": "artifactregistry/v1/",
    "CLOUDBUILD": "cloudbuild/v1/",
    "CLOUDQUOTAS": "cloudquotas/v1/",
    "CLOUDRESOURCEMANAGER": "cloudresourcemanager/v1/",
    "CLOUDSCHEDULER": "cloudscheduler/v1/",
    "COMPUTE": "compute/v1/",
    "MONITORING": "monitoring/v3/",
    "SERVICEUSAGE": "serviceusage/v1/",
    "WORKFLOWS": "workflows/v1/",
}


def install(home: Path, python: Path) -> None:
    """Install both plugins below `home` (PULUMI_HOME); that python runs them."""
    schema.sdk()  # it is made once a machine; the CLI would not wait for it
    for package, distribution in (("gcp", "pulumi_gcp"), ("docker-build", "pulumi_docker_build")):
        version = importlib.metadata.version(distribution)
        folder = home / "plugins" / f"resource-{package}-v{version}"
        folder.mkdir(parents=True)
        command = [str(python), "-I", "-u", str(Path(__file__).with_name("provider.py")), package, version]
        script = folder / f"pulumi-resource-{package}"
        script.write_text(f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n')
        script.chmod(0o755)


def environment(url: str, storage: str, folder: Path) -> dict[str, str]:
    """Return the environment that directs plugins, scripts and VMs to the stand-in cloud.

    `folder` gets a credentials file for the deployer.
    """
    credentials = folder / "deployer.json"
    deployer = {
        "type": "service_account",
        "client_email": "deployer@stand-in.iam.gserviceaccount.com",
        "private_key": _key(),  # it is used for the daemon's token_uri alone, which checks no signature
        "token_uri": f"{url}/token",
    }
    credentials.write_text(json.dumps(deployer))
    return {
        "GPT2_TRAINING_STANDIN": url,
        "STORAGE_EMULATOR_HOST": storage,
        "GOOGLE_APPLICATION_CREDENTIALS": str(credentials),
        **{f"CLOUDSDK_API_ENDPOINT_OVERRIDES_{name}": f"{url}/{path}" for name, path in SERVICES.items()},
    }


@functools.cache
def _key() -> str:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    encoding, kind = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    return key.private_bytes(encoding, kind, serialization.NoEncryption()).decode()


def without_google(environ: dict[str, str] | None = None) -> dict[str, str]:
    """Return an environment without a person's own Google Cloud or Pulumi."""
    theirs = (
        "PULUMI_",
        "GOOGLE_",
        "CLOUDSDK_",
        "GCLOUD_",
        "GCE_METADATA_",
        "STORAGE_EMULATOR_",
        "GPT2_TRAINING_STANDIN",
    )
    return {k: v for k, v in (environ or dict(os.environ)).items() if not k.startswith(theirs)}

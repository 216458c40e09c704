"""Build the container image that every machine runs from trainer/ and push it, or take the one that is pinned.

The tag is the code's hash, so unchanged code is never built again; a preview builds nothing. Machines get only the
digest. docker logs in to the registry by itself (`gcloud auth configure-docker`): a token of ours would be in Pulumi's
state.
"""

import pulumi
import pulumi_docker_build as docker_build
from pulumi_gcp import artifactregistry

from infra.google.identity import Identity
from infra.google.retained import image_name, repository_settings, run_image
from infra.google.retained import repository as repository_name
from infra.stack.config import StackConfig
from trainer.contract.spec import JobSpec


class Image(pulumi.ComponentResource):
    """The image repository, the machines' right to read it, and the image."""

    reference: pulumi.Output[str]  # NAME@sha256:…

    def __init__(
        self,
        config: StackConfig,
        job: JobSpec,
        identity: Identity,
        repository_exists: bool,
        opts: pulumi.ResourceOptions,
    ):
        """Declare the image; `repository_exists` says whether an earlier stack of this name left the repository."""
        super().__init__("gpt2-training:google:Image", "image", {}, opts)
        child = pulumi.ResourceOptions(parent=self)
        keep = config.file.keep_artifacts
        full = repository_name(config) if repository_exists else None
        repository = artifactregistry.Repository(
            "repository",
            repository_id=f"gpt2-{config.stack}",
            location=config.region,
            **repository_settings(config.stack, run_image(config, job)),
            opts=pulumi.ResourceOptions(parent=self, retain_on_delete=keep, import_=full),
        )
        for role, account in identity.machines.items():
            artifactregistry.RepositoryIamMember(
                f"{role}-image-grant",
                repository=repository.repository_id,
                location=config.region,
                role="roles/artifactregistry.reader",
                member=account.member,
                opts=child,
            )
        if config.file.image is not None:
            self.reference = pulumi.Output.from_input(config.file.image)
            if not config.file.image.startswith(f"{image_name(config)}@"):
                pulumi.log.warn(
                    "image: is not in this stack's repository; grant its accounts roles/artifactregistry.reader there,"
                    " and again after a destroy and `up`, which makes new accounts of the same names",
                    self,
                )
        else:
            trainer = config.root / "trainer"
            image = docker_build.Image(
                "trainer",
                tags=[f"{image_name(config)}:{job.code}"],
                context={"location": str(trainer)},
                dockerfile={"location": str(trainer / "Dockerfile")},
                platforms=[docker_build.Platform.LINUX_AMD64],
                push=True,
                build_on_preview=False,
                pull=False,  # the base image is pinned by digest; True would build every time
                opts=pulumi.ResourceOptions(parent=self, retain_on_delete=True, depends_on=[repository]),
            )
            self.reference = image.digest.apply(lambda digest: f"{image_name(config)}@{digest}")
        self.register_outputs({"reference": self.reference})

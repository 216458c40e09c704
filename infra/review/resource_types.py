"""The types of resources, as Pulumi calls them, that the review and the policies both look for."""

RUN = "gpt2-training:run:TrainingRun"  # its inputs are the settings of the stack file
BUCKET = "gcp:storage/bucket:Bucket"
GROUP = "gcp:compute/regionInstanceGroupManager:RegionInstanceGroupManager"
TEMPLATE = "gcp:compute/regionInstanceTemplate:RegionInstanceTemplate"


def role_of(name: str) -> str:
    """Return the role of a template or a group by its name, such as worker-us-central1-a-group."""
    return name.partition("-")[0]

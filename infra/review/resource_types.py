"""The types of resources, as Pulumi calls them, that the review and the policies both look for."""

RUN = "gpt2-training:run:TrainingRun"  # its inputs are the settings of the stack file
BUCKET = "gcp:storage/bucket:Bucket"
GROUP = "gcp:compute/regionInstanceGroupManager:RegionInstanceGroupManager"
REQUEST = "gcp:compute/regionResizeRequest:RegionResizeRequest"
TEMPLATE = "gcp:compute/regionInstanceTemplate:RegionInstanceTemplate"

"""What runs on every machine of a training run. It knows nothing of Pulumi; contract/ is what infra/ shares."""

"""What runs on every machine of a training run. It knows nothing of Pulumi; `trainer.spec` is what infra/ shares."""

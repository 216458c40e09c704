"""The program of every machine of a training run. It knows nothing of Pulumi, and infra/ shares its contract/."""

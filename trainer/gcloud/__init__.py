"""Google Cloud's login and REST, for trainer/, infra/ and scripts/."""

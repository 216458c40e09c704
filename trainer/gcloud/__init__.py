"""Log in to Google Cloud and call its REST APIs, for trainer/, infra/ and scripts/."""

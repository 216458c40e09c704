pytest_plugins = ["tests.gcs"]

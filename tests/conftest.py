import signal

from hypothesis import settings

pytest_plugins = ["tests.gcs", "tests.warm_python"]

# A process that a shell starts in the background ignores Ctrl-C, as do its children; some tests send it to commands.
signal.signal(signal.SIGINT, signal.default_int_handler)

# A busy machine is slow, which is no failure.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")

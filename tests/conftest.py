import signal

from hypothesis import settings

pytest_plugins = ["tests.gcs", "tests.warm_python"]

# What a shell starts in the background ignores Ctrl-C, and so does all that it starts; some tests send it to commands.
signal.signal(signal.SIGINT, signal.default_int_handler)

# A machine that is busy is slow, and that is no failure.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")

import signal

pytest_plugins = ["tests.gcs"]

# What a shell starts in the background ignores Ctrl-C, and so does all that it starts; some tests send it to commands.
signal.signal(signal.SIGINT, signal.default_int_handler)

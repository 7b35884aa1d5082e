"""Settings for all tests."""

from hypothesis import settings

# No deadline: a busy machine is no failure.
settings.register_profile("llamaproxy", deadline=None, max_examples=50)
settings.load_profile("llamaproxy")

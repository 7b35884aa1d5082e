"""Settings for all tests."""

import signal

from hypothesis import settings

# No deadline: a busy machine is no failure.
settings.register_profile("llamaproxy", deadline=None, max_examples=50)
settings.load_profile("llamaproxy")

# A shell starts what goes to the background with SIGINT ignored, nohup anything with SIGHUP, and
# daemons inherit that.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

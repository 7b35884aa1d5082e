"""What the daemon costs, as ratios to a bare ``twisted.web`` resource measured in the same run.

``python -m tests.benchmarks`` from the project's root prints one line per figure. Nothing here is
a test: no figure fails a build, because a shared machine's clock is no judge.
"""

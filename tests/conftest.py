"""One thread for the whole suite: small tensors gain nothing from more, results do not depend on the machine's cores, and the
tests that fork a process to kill it must not fork a running thread pool. Set before anything imports torch."""

import os

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"

"""The model: from a request to an image."""

import os

if "OMP_WAIT_POLICY" not in os.environ:
    # PyTorch reads it once, as it is loaded. Its threads else wait for each other some 30 times as long before they
    # sleep; beside other work on all cores the one waited for then has no core, thousands of times in a picture.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")

"""Settings of every test."""

import os

# The models are small: a second thread costs more than it brings, above all beside other workers.
# Set before torch is imported, and inherited by the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

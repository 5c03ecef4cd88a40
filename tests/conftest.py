"""Before torch is loaded: threads that wait must not spin, or tests beside other work take a hundred times as long."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("KMP_BLOCKTIME", "0")

"""torchrun, for node.sh, with a log that a person can read. Exit code 75, and no traceback, where a signal ended it."""

import os
import sys

# At the end of a run the first node's torchrun, which serves the rendezvous, may be gone before the others have said
# goodbye; torch tells that with a stack trace. Read when torch is imported; the ranks keep the default.
level = os.environ.get("TORCH_CPP_LOG_LEVEL")
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

from torch.distributed.elastic.multiprocessing.api import SignalException  # noqa: E402
from torch.distributed.run import main  # noqa: E402

if level is None:
    del os.environ["TORCH_CPP_LOG_LEVEL"]
try:
    main()
except SignalException as interrupted:
    print(f"torchrun: {interrupted}; its ranks have ended", file=sys.stderr)
    sys.exit(75)

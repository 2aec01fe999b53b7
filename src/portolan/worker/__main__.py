"""`python -m portolan.worker`: a worker on stdin and stdout."""

from __future__ import annotations

import sys

from portolan.worker.agent import main

if __name__ == "__main__":
    main(sys.argv[1:])

"""`python -m portolan.kernels`: the process in which kernels are tried."""

from __future__ import annotations

import sys

from portolan.kernels.agent import main

main(sys.argv[1:])

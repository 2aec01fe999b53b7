"""`python -m portolan` is `portolan`."""

from __future__ import annotations

from portolan.cli import main

if __name__ == "__main__":
    main()

"""`python -m txcoord`."""

from __future__ import annotations

from txcoord.cli import main

if __name__ == "__main__":
    main()

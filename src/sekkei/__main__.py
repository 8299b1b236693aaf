"""`python -m sekkei` is the `sekkei` command; `torchrun -m sekkei …` starts its ranks."""

import sys

from sekkei.cli import main

if __name__ == "__main__":
    sys.exit(main())

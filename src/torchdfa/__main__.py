"""Run the command line as ``python -m torchdfa``."""

import sys

from torchdfa.cli import main

if __name__ == "__main__":
    sys.exit(main())

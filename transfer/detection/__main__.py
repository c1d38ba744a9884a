"""`python -m transfer.detection CKPT`."""

import sys

from transfer.detection.command import main

if __name__ == "__main__":
    sys.exit(main())

"""`python -m transfer.segmentation CKPT`: UperNet or a linear head, trained and scored on ADE20K."""

import sys

from transfer.segmentation.command import main

if __name__ == "__main__":
    sys.exit(main())

"""`python -m knn checkpoint.pth`: weighted k-NN of one checkpoint."""

import sys

from mimbench.suite.task_main import task_main

if __name__ == "__main__":
    sys.exit(task_main("knn.classify", program="python -m knn"))

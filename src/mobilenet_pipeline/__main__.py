"""`python -m mobilenet_pipeline`: the command line."""

import sys

from mobilenet_pipeline.cli import main

if __name__ == "__main__":
    sys.exit(main())

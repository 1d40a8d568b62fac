"""`python -m edge.demo`."""

import sys

from edge.demo.run import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

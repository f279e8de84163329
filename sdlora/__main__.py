"""`python -m sdlora`: the command line, as `launch.py` runs it once its packages are installed."""

import sys

from sdlora.cli.main import main

if __name__ == "__main__":
    sys.exit(main())

"""`python -m landscape` is the console script."""

import sys

from landscape.cli import main

sys.exit(main())

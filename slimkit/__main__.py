"""`python -m slimkit` is `slimkit`."""

import sys

from slimkit.cli.app import main

if __name__ == "__main__":
    sys.exit(main())

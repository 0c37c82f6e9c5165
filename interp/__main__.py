"""`python -m interp` is `interp`."""

import sys

from interp.cli import main

sys.exit(main())

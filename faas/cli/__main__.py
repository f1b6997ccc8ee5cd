"""`python -m faas.cli`."""

import sys

from faas.cli import main

sys.exit(main())

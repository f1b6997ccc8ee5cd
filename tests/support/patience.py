"""How long tests wait for what must come: an emulated machine is 20 to 40 times slower, and no less right."""

import os

FACTOR = float(os.environ.get("FAAS_TEST_PATIENCE") or 1)

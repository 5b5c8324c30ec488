"""From gridded observations to compared, tracked and scheduled forecasts.

`fieldcast.pipeline` and `fieldcast.models` are the folders `pipeline/` and `models/` of the repository.
"""

import os
import sqlite3  # noqa: F401  before eccodes, whose old SQLite would serve the whole process, and MLflow refuses it

# torch's threads (libgomp) spin at barriers before they sleep. Beside other busy processes a training step then takes
# up to a hundred times as long; a short spin costs nothing on a quiet machine. Read once, when torch is loaded.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

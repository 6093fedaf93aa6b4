"""The directory of this machine in which runs keep everything that is no shard."""

import os
from pathlib import Path

HOME = "RAYSTILL_HOME"  # environment variable
SUBMITTED = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # what Ray sets for the driver of a submitted job, whose directory is scratch
# RAYSTILL_HOME, or .raystill where jobs are typed.
DIRECTORY = Path(os.environ.get(HOME) or ("~/.raystill" if SUBMITTED in os.environ else ".raystill")).expanduser()
REPORTS = str(DIRECTORY / "reports")  # where sweeps and studies write theirs, unless they are told otherwise

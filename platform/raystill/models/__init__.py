"""Pretrained pipelines, denoisers, adapters and weight averages."""

import os

# The libraries read these while they are imported: errors only, no notes on unused parts, and no counting of uses.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")

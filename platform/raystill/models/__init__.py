"""Pretrained pipelines, denoisers, adapters and weight averages."""

import os

# The libraries read these while they are imported: no look-ups on the Hub, and errors only, no notes on unused parts.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")

"""Pretrained pipelines, denoisers, adapters and weight averages."""

import os

# Read by the libraries while they are imported: no look-ups on the Hub, no notes about parts that nobody asked for.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")

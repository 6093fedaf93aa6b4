"""Pretrained pipelines, denoisers, adapters and weight averages."""

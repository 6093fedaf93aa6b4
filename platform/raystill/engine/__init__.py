"""Engines, which update the trainable parameters of a module: plain torch or DeepSpeed ZeRO."""

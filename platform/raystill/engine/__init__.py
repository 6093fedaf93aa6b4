"""How a module is updated: plain torch or DeepSpeed ZeRO."""

"""raystill: distils text-to-image diffusion models into ones that draw in 1-8 steps."""

"""The coupling of latents and noise in training: independent, or within a batch by an assignment of noise to near
latents.
"""

import torch
from scipy.optimize import linear_sum_assignment

from raystill.flow.predictions import Latent
from raystill.flow.randomness import RandomStream
from raystill.methods.teaching import fresh


def noise_for(x_0: Latent, rng: RandomStream, *, immiscible: bool) -> Latent:
    """N(0, I) noise for the latents of a lane; `immiscible` assigns it to them by the linear assignment with the least
    sum of squared distances (2406.12303, which assigns over a whole step and takes the distances). HOST SYNC where it
    does.
    """
    noise = fresh(x_0, rng)
    if not immiscible:
        return noise
    data, drawn = (x.detach().float().flatten(1).cpu().numpy() for x in (x_0, noise))
    chosen = linear_sum_assignment(data @ drawn.T, maximize=True)[1]  # of squared distances the rest is the same
    return noise[torch.from_numpy(chosen).to(noise.device)]

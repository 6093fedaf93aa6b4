"""What schedulers are compared with: sampling along a path in raystill's own mathematics, without diffusers."""

from raystill.flow import paths
from raystill.flow.jumps import Walk, held, stop, stops
from raystill.flow.predictions import Latent
from raystill.models.conditioning import Condition
from raystill.models.denoiser import Denoiser
from raystill.models.sampling import ODE, Sampling


def sample_student(
    student: Denoiser, path: paths.Path, start: Latent, condition: Condition, steps: int, sampling: Sampling = ODE
) -> Latent:
    """Draw clean latents from starts in `steps` network calls per sample, at the signal-to-noise ratios of the stock
    timesteps.

    The ODE jump is stock DDIM at trailing timesteps, on any path. The anchored jump takes the start for the target
    mean; the path's noise, as all fresh noise, is drawn from each start's own bits.
    """
    schedule = student.schedule
    every = stops(held(path, sampling.jump), schedule, schedule.angle(schedule.sampling_times(steps)))
    walk = Walk.begin(every, sampling.eta, start)
    x = walk.entry()
    for i in range(steps):
        prediction = student.at_angle(x, stop(every, i, len(x)).angle, condition)
        x = walk.jump(i, prediction) if i + 1 < steps else prediction.data
    return x

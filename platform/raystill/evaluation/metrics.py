"""What is measured of pictures: every metric of an evaluation, in the order of its table."""

from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from raystill.config.errors import UserError
from raystill.evaluation.distances import frechet, kernel_distance


@dataclass(frozen=True, slots=True, kw_only=True)
class Pictures:
    """The pictures that a network draws in one number of steps, as far as metrics ask, beside what they are compared
    with: real pictures of the same captions, and the teacher's own samples from the same starts at its reference steps.
    """

    features: Float[Tensor, "n d"]
    real: Float[Tensor, "m d"]  # features of the real pictures
    reference: Float[Tensor, "n d"]  # features of the teacher's samples
    seconds: Float[Tensor, " n"]  # of one actor, for each picture
    lpips: Float[Tensor, " n"] | None = None  # to the teacher's sample of the same start; None for the teacher's own


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A number that is taken of pictures; being listed in METRICS is enough to be measured, printed and tracked."""

    name: str  # in reports and cards, and as evaluation/NAME_STEPS in MLflow
    heading: str  # of its column
    digits: str  # its format there, width included
    measure: Callable[[Pictures], float | None]  # None where these pictures have no such number

    def __post_init__(self) -> None:
        try:
            width = len(format(0.0, self.digits))
        except ValueError as error:
            raise UserError(f"the metric {self.name} has digits {self.digits!r}; write one such as 9.3f") from error
        if width < len(self.heading):
            raise UserError(f"the heading {self.heading!r} is wider than {self.digits!r}: write more width")


def _kernel(found: Pictures) -> float:
    """The unbiased kernel distance, of all pictures at once."""
    return kernel_distance(found.features, found.real, subsets=1, subset_size=len(found.features)).mean


METRICS = (
    Metric(
        name="frechet", heading="frechet", digits="9.3f",
        measure=lambda found: frechet(found.features, found.real, allow_few=True),
    ),
    Metric(
        name="frechet_teacher", heading="to teacher", digits="10.3f",
        measure=lambda found: frechet(found.features, found.reference, allow_few=True),
    ),
    Metric(name="kernel", heading="kernel", digits="8.4f", measure=_kernel),
    Metric(
        name="lpips_teacher", heading="lpips", digits="7.3f",
        measure=lambda found: None if found.lpips is None else float(found.lpips.double().mean()),
    ),
    Metric(
        name="images_per_s", heading="images/s", digits="9.1f",
        measure=lambda found: 1 / float(found.seconds.double().mean()),
    ),
)  # fmt: skip


def figures(found: Pictures, metrics: tuple[Metric, ...] = METRICS) -> dict[str, float]:
    """The value of every metric that these pictures have, by its name, to six significant digits and five places:
    linear algebra differs in its last bits from run to run, and an adapter's digest must not.
    """
    values = {metric.name: metric.measure(found) for metric in metrics}
    # + 0.0: no minus zero
    return {name: float(f"{round(v, 5):.6g}") + 0.0 for name, v in values.items() if v is not None}

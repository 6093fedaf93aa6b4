"""The smallest recipes: a 32 x 32 emoji pipeline from scratch, and its distillation on two CPU cores."""

from dataclasses import replace

from raystill.data.records import Reading
from raystill.engine.precision import faster_precision
from raystill.engine.protocol import Optimizer
from raystill.launch.settings import Cluster
from raystill.models.fresh import Tokens
from raystill.run.settings import Evaluation, Pretraining, Run, Targets
from raystill.targets.targets import Generation, IndependentMeans
from raystill.training.loop import Training
from raystill.training.pretraining import AutoencoderTask, DenoiserTask

SAMPLE = "shipped://samples/noto"  # shards that come with raystill


CAPTIONS = (  # captions of the first two shards, which are evaluated
    "broken heart", "duck", "flag india", "hamburger", "light bulb", "palm tree", "panda", "sun", "tulip",
    "worried face",
)  # fmt: skip


def run() -> Run:
    """Settings of the demo: the shipped teacher distilled on two cores in minutes."""
    return Run(
        name="nano",
        store="embedded",
        sample=SAMPLE,
        shards="s3://raystill/noto",
        work="s3://raystill/work",
        artifacts="s3://raystill/mlflow",
        teacher="shipped://teachers/nano",
        model="nano-rayflow",
        targets=Targets(estimator=Generation(solver_steps=8)),
        optimizer=Optimizer(learning_rate=1e-3, warmup_steps=20, final_fraction=0.02),
        training=Training(
            steps=100, lanes=2, lane_size=64, average_decay=0.97, log_every=10, checkpoint_every=50, picture_every=50
        ),
        evaluation=Evaluation(shards=2, captions=CAPTIONS),
        cluster=Cluster(workers=2),
    )


def open_ended() -> Run:
    """The demo without captions, where many pictures are possible and the teacher needs many steps for one."""
    demo = run()
    return replace(
        demo,
        name="nano-open",
        model="nano-open-rayflow",
        reading=Reading(drop_captions=1.0),
        targets=Targets(estimator=Generation(solver_steps=16, guidance=1.0)),
        training=replace(demo.training, steps=250, average_decay=0.98, checkpoint_every=125, picture_every=125),
        evaluation=replace(demo.evaluation, guidance=1.0, shards=4),
    )


def control() -> Run:
    """`open_ended` with target means that are independent of the teacher: a control, which must be clearly worse."""
    return replace(
        open_ended(), name="nano-control", model="nano-control-rayflow", targets=Targets(estimator=IndependentMeans())
    )


def teacher() -> Pretraining:
    """Settings of the training that made the shipped teacher, `shipped://teachers/nano`; bfloat16 where this machine
    gains by it, as it did there.
    """
    return Pretraining(
        name="nano-teacher",
        shards=SAMPLE,
        work=".raystill/work",
        output=".raystill/teachers/nano",
        reading=Reading(picture_size=32),
        autoencoder=AutoencoderTask(
            optimizer=Optimizer(learning_rate=1.5e-3, warmup_steps=100, final_fraction=0.02),
            training=Training(
                steps=4500,
                lane_size=32,
                precision=faster_precision(),
                log_every=50,
                checkpoint_every=250,
                picture_every=500,
            ),
        ),
        denoiser=DenoiserTask(
            tokens=Tokens(vocabulary=0, start=0, end=0, empty=()),
            latent_channels=4,
            latent_size=8,
            kind="v_prediction",
            optimizer=Optimizer(learning_rate=1.2e-3, warmup_steps=200, final_fraction=0.02, weight_decay=0.01),
            training=Training(
                steps=8500,
                lane_size=64,
                precision=faster_precision(),
                log_every=50,
                checkpoint_every=250,
                picture_every=500,
                average_decay=0.9995,
            ),
        ),
    )

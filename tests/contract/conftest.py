"""What engines of several processes need, in one."""

import gc
from collections.abc import Iterator

import pytest
import torch.distributed as dist


@pytest.fixture(scope="package")  # DeepSpeed stays with the first one
def process_group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Of this process alone."""
    gc.collect()
    gc.freeze()  # DeepSpeed collects garbage for every engine of stage 3, a second each over all that is imported here
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}.items():
            patch.setenv(name, value)
        store = tmp_path_factory.mktemp("group") / "store"
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
        yield
        dist.destroy_process_group()
    gc.unfreeze()

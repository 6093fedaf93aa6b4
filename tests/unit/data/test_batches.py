"""Rows stacked into batches."""

from pathlib import Path

import numpy as np
import torch

from raystill.data.batches import collate, read_group
from raystill.data.local import LocalStore
from raystill.data.plan import Group
from raystill.data.records import Row, pack_row
from raystill.data.shards import pack
from raystill.data.tensors import to_device


def row(number: int) -> Row:
    return {
        "key": f"s{number}",
        "caption": f"c{number}",
        "image": np.full((2, 3, 1), number, dtype=np.uint8),
        "x_0": np.full((4,), number / 2, dtype=np.float32),
    }


def test_arrays_become_tensors_and_text_stays_text() -> None:
    batch = collate([row(3), row(1)])
    assert (batch["key"], batch["caption"]) == (["s3", "s1"], ["c3", "c1"])
    assert batch["image"].shape == (2, 2, 3, 1)
    assert batch["image"].dtype == torch.uint8
    assert batch["x_0"].dtype == torch.float32
    assert batch["x_0"][:, 0].tolist() == [1.5, 0.5]


def test_a_batch_moves_with_its_text() -> None:
    moved = to_device(collate([row(0)]), torch.device("meta"))
    assert moved["image"].device.type == "meta"
    assert moved["key"] == ["s0"]


def test_a_group_is_read_in_its_own_order(tmp_path: Path) -> None:
    store = LocalStore(uri=str(tmp_path))
    store.write("a.tar", pack(pack_row(row(n)) for n in range(3)))
    store.write("b.tar", pack(pack_row(row(n)) for n in range(3, 5)))
    group = Group(keys=("b.tar", "a.tar"), order_seed=(1, 2, 3), skip=1, stop=4)
    whole = np.random.default_rng((1, 2, 3)).permutation(5)
    by_position = ["s3", "s4", "s0", "s1", "s2"]
    assert [r["key"] for r in read_group(store, group)] == [by_position[i] for i in whole[1:4]]

"""What comes inside the package has an address that does not depend on the current directory."""

from pathlib import Path

import pytest

from raystill.config.errors import UserError
from raystill.config.shipped import located
from raystill.data.shards import list_shards
from raystill.data.store import open_store
from raystill.recipes.resolve import resolve


def test_recipes_name_what_is_shipped_from_any_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = resolve("nano")
    assert (located(run.teacher) / "model_index.json").is_file()
    assert len(list_shards(open_store(run.sample))) == 15
    assert located(resolve("nano:teacher").shards).is_dir()


def test_other_addresses_are_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert located("mine/teacher") == Path("mine/teacher")
    assert located("/mine") == Path("/mine")


def test_adapters_find_the_base_that_was_shipped_beside_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert located("teachers/nano") == located("shipped://teachers/nano")
    (tmp_path / "teachers" / "nano").mkdir(parents=True)
    assert located("teachers/nano") == Path("teachers/nano")


@pytest.mark.parametrize("name", ["teachers/none", "../recipes", "teachers/../../recipes", "", "teachers"])
def test_a_name_of_nothing_shipped_is_refused_with_what_there_is(name: str) -> None:
    with pytest.raises(UserError, match=r"there are: .*shipped://samples/noto, shipped://teachers/nano"):
        located(f"shipped://{name}")

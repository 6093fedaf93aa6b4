"""Which samples are rows of an evaluation's picture."""

from raystill.run.evaluate import FOR_CAPTION, MOST, rows_of_picture


def test_each_wanted_caption_has_its_first_samples_in_the_order_asked_for() -> None:
    captions = ["cat", "sun", "cat", "duck", "cat", "sun"]
    assert rows_of_picture(("sun", "cat", "nothing"), captions) == [1, 5, 0, 2]
    assert FOR_CAPTION == 2


def test_class_names_that_repeat_make_no_endless_picture() -> None:
    captions = [f"class {i % 10}" for i in range(5000)]
    assert rows_of_picture([f"class {i}" for i in range(10)], captions) == list(range(10))  # none is left out
    many = [f"class {i % 50}" for i in range(5000)]
    assert len(rows_of_picture([f"class {i}" for i in range(50)], many)) == MOST


def test_without_captions_some_of_all_are_shown() -> None:
    assert rows_of_picture((), [""] * 100) == list(range(0, 100, 10))
    assert rows_of_picture(("absent",), ["a", "b"]) == [0, 1]

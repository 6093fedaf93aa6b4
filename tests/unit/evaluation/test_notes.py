"""Notes beside a report: what is for its beginning, and what for its sections."""

from pathlib import Path

from raystill.evaluation.notes import notes_on


def test_sections_of_the_report_s_own_titles_go_there_and_all_else_to_its_beginning(tmp_path: Path) -> None:
    (tmp_path / "study.notes.md").write_text("How.\n\n## What held\n\nMost.\n\n## sigma\n\nZero.\n\n### More\n\nYes.\n")
    for file in ("study.md", "study.json"):
        lead, sections = notes_on(tmp_path / file, ["times", "sigma"])
        assert lead == "How.\n\n## What held\n\nMost."
        assert sections == {"sigma": "Zero.\n\n### More\n\nYes."}


def test_a_report_without_notes_has_none(tmp_path: Path) -> None:
    assert notes_on(tmp_path / "study.md", ["sigma"]) == ("", {})

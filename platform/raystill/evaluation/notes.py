"""What people write about measurements: a file beside a report, which every writing of the report takes in."""

import re
from collections.abc import Sequence
from pathlib import Path

HEADING = re.compile(r"^## (.+)$", re.MULTILINE)


def notes_on(report: Path, titles: Sequence[str] = ()) -> tuple[str, dict[str, str]]:
    """The notes of REPORT.notes.md: those for the report's beginning, and those for the end of its sections, by title.
    A section `## TITLE` of the notes whose title is among `titles` is for the report's section of that title; all else
    is for its beginning. Empty where there is no such file.
    """
    file = report.with_suffix(".notes.md")
    lead, *found = HEADING.split(file.read_text()) if file.is_file() else [""]
    sections = dict(zip(found[::2], (text.strip() for text in found[1::2]), strict=True))
    own = [f"## {title}\n\n{text}" for title, text in sections.items() if title not in titles]
    return "\n\n".join(filter(None, [lead.strip(), *own])), {t: sections[t] for t in titles if t in sections}

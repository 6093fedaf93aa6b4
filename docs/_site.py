"""What the documentation site has beside the files of `docs`: the files of the repository's root, and a page for every
module. A hook of mkdocs; links are those that work in the repository, and are turned into the site's here.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
PAGES |= {
    "cluster/README.md": "cluster.md",
    "platform/raystill/shipped/samples/noto/ATTRIBUTION.md": "attribution.md",
    "platform/raystill/shipped/features/ATTRIBUTION.md": "attribution-features.md",
}
MODULES = {
    str(path.relative_to(ROOT)): f"api/{path.relative_to(ROOT / 'platform').with_suffix('.md')}"
    for path in sorted((ROOT / "platform").rglob("*.py"))
    if path.name not in ("__init__.py", "__main__.py")
}
SHOWN = {place: source for source, place in (PAGES | MODULES).items()}  # page of the site -> file of the repository
LINK = re.compile(r"\[([^\]\[]*)\]\((?!https?:|#)([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made of other files."""
    for source, place in PAGES.items():
        files.append(File.generated(config, place, content=(ROOT / source).read_text()))
    for source, place in MODULES.items():
        name = source.removeprefix("platform/").removesuffix(".py").replace("/", ".")
        files.append(File.generated(config, place, content=f"# {name}\n\n::: {name}\n"))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links between files of the repository into links between pages; what has no page becomes plain text."""
    here = page.file.src_uri
    source = SHOWN.get(here, f"docs/{here}")

    def turned(found: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), found[2]))
        place = (PAGES | MODULES).get(target) or target.removeprefix("docs/")
        if target not in PAGES | MODULES and not target.startswith("docs/"):
            return found[1]  # a folder, or a file without a page: its name stays
        return f"[{found[1]}]({posixpath.relpath(place, posixpath.dirname(here) or '.')}{found[3] or ''})"

    return LINK.sub(turned, markdown)

"""What mkdocs does beyond its settings: the README is the first page, links out of docs/ become names."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
_LINK = re.compile(r"\[([^\]]+)\]\(([^)\s]+)\)")


def on_files(files: Any, config: Any) -> Any:
    """Add the README as the first page."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    files.append(File.generated(config, "index.md", content=_links(text, "", root="docs/")))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links that lead out of docs/ become the names of their files."""
    if page.file.src_uri == "index.md":
        return markdown
    return _links(markdown, posixpath.dirname(page.file.src_uri))


def _links(markdown: str, folder: str, root: str = "") -> str:
    def changed(found: re.Match[str]) -> str:
        text, target = found[1], found[2]
        if re.match(r"[a-z]+:|#", target):
            return found[0]
        if root:  # of a page that stands above docs/
            return f"[{text}]({target.removeprefix(root)})" if target.startswith(root) else f"`{text}`"
        inside = posixpath.normpath(posixpath.join(folder, target))
        return f"`{inside.lstrip('./')}`" if inside.startswith("..") else found[0]

    return _LINK.sub(changed, markdown)

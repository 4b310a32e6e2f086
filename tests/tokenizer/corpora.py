"""Large real text: Python's standard library, and the Debian handbook where it is at hand.

``ABYSSAL_CORPORA`` may name a folder of UTF-8 ``.txt`` files; else the handbook's pages are read
where Debian installs them (package ``debian-handbook``).
"""

import html
import os
import re
import sysconfig
from pathlib import Path

HANDBOOK = Path("/usr/share/doc/debian-handbook/html")
LANGUAGES = {
    "english": ["en-US"],
    "chinese": ["zh-CN", "zh-TW"],
    "russian": ["ru-RU"],
    "arabic": ["ar-MA"],
    "japanese": ["ja-JP"],
}


def standard_library(limit: int) -> list[str]:
    """Sources of the standard library, in a fixed order, up to about ``limit`` characters."""
    texts: list[str] = []
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py")):
        if "site-packages" in path.parts:
            continue
        texts.append(path.read_text("utf-8", "ignore"))
        limit -= len(texts[-1])
        if limit < 0:
            break
    return texts


def _page(path: Path) -> str:
    text = re.sub(r"<(script|style)[^>]*>.*?</\1>", "", path.read_text("utf-8"), flags=re.S)
    return html.unescape(re.sub(r"<[^>]+>", "", text))


def prose() -> dict[str, list[str]]:
    """Texts by language; empty, after a line that says so, where there are none."""
    folder = os.environ.get("ABYSSAL_CORPORA")
    if folder:
        return {p.stem: [p.read_text("utf-8")] for p in sorted(Path(folder).glob("*.txt"))}
    if HANDBOOK.is_dir():
        return {
            language: [_page(p) for f in folders for p in sorted((HANDBOOK / f).glob("*.html"))]
            for language, folders in LANGUAGES.items()
        }
    print(f"no prose: neither ABYSSAL_CORPORA nor {HANDBOOK}; the standard library only")
    return {}

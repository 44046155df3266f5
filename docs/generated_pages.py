"""Pages of the site that come from the project itself, for mkdocs: see `hooks` in mkdocs.yml.

The configuration reference is configs/README.md, the command reference what the commands say of themselves.
"""

import logging
import os
import re
from pathlib import Path
from typing import Any

import typer
from mkdocs.structure.files import File

from tuner.cli.app import app

ROOT = Path(__file__).parents[1]
LOGGER = logging.getLogger("mkdocs.generated_pages")

# A link to a file of the repository that is no page: [text](../configs/README.md).
_LINK_OUTSIDE = re.compile(r"\[([^\]]+)\]\(((?:\.\./)+[^)#]+)(#[^)]*)?\)")
# The first thing in a cell, where it is code: a flag or a key.
_CODE_IN_CELL = re.compile(r"(?<=<td><code>)[^<]+(?=</code>)")
_PAGES = {"configs/README.md": "configuration.md", "README.md": "index.md"}


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages, and the changelog and the guide that lie beside the folder of pages."""
    pages = {
        "configuration.md": in_sections((ROOT / "configs/README.md").read_text()),
        "commands.md": command_reference(),
        "changelog.md": (ROOT / "CHANGELOG.md").read_text(),
        "contributing.md": (ROOT / "CONTRIBUTING.md").read_text(),
    }
    for name, content in pages.items():
        files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links that lead out of the folder of pages become links within it, or the name of the file."""
    folder = (ROOT / "docs" / page.file.src_uri).parent
    if page.file.src_uri == "configuration.md":
        folder = ROOT / "configs"
    if page.file.src_uri in ("changelog.md", "contributing.md"):
        folder = ROOT

    def inside(match: re.Match[str]) -> str:
        text, target, anchor = match.group(1), Path(os.path.normpath(folder / match.group(2))), match.group(3) or ""
        if not target.is_relative_to(ROOT) or not target.exists():
            LOGGER.warning("%s: %s leads nowhere", page.file.src_uri, match.group(2))
            return text
        name = target.relative_to(ROOT).as_posix()
        if name.startswith("docs/") or name in _PAGES:
            here = (ROOT / "docs" / page.file.src_uri).parent
            there = ROOT / "docs" / _PAGES.get(name, name.removeprefix("docs/"))
            return f"[{text}]({os.path.relpath(there, here)}{anchor})"
        return f"`{name}`" if text.strip("`").rstrip("/") in name else f"{text} (`{name}`)"

    return _LINK_OUTSIDE.sub(inside, markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Marks for stylesheets/extra.css: errors as such, and where flags and keys may break."""
    html = html.replace('<span class="go">error: ', '<span class="go told">error: ')

    def parts(match: re.Match[str]) -> str:
        found = re.findall(r"[^. ]*[. ]*", match.group())
        return "<wbr>".join(f"<span>{part}</span>" for part in found if part)

    return _CODE_IN_CELL.sub(parts, html)


def in_sections(text: str) -> str:
    """The table of all keys as one table for each section that has keys below it, under headings."""
    lines = text.splitlines()
    begin = next(number for number, line in enumerate(lines) if line.startswith("| key |"))
    rows = {row: row.split("`")[1].split(":")[0].split(".") for row in lines[begin + 2 :] if row}
    sections = {".".join(key[:depth]) for key in rows.values() for depth in (1, 2) if len(key) > depth}
    tables: dict[str, list[str]] = {}
    for row, key in rows.items():
        title = next((name for name in (".".join(key[:2]), key[0]) if name in sections), "Other sections")
        tables.setdefault(title, []).append(row)
    tables["Other sections"] = tables.pop("Other sections")
    parts = ["\n".join(lines[:begin])]
    parts += [f"## {title}\n\n" + "\n".join([*lines[begin : begin + 2], *table]) for title, table in tables.items()]
    return "\n\n".join(parts) + "\n"


def command_reference() -> str:
    """Markdown with each command's use, arguments, options and example, as `--help` tells them."""
    group = typer.main.get_command(app)
    root = typer.Context(group, info_name="tuner")
    parts = [
        "# Commands",
        f"{group.help}",
        "Options are written `--name value` or `--name=value`, with `-` or `_` within a name. Every command takes "
        "`--help`. Exit codes: 0 done, and for `tuner tune` the criterion is met; 2 a mistake in input, told in one "
        "line; 3 nothing met the criterion, and the best graph found was written; 130 Ctrl-C; 1 a fault of ours.",
    ]
    for name in group.list_commands(root):
        command = group.get_command(root, name)
        context = typer.Context(command, info_name=name, parent=root)
        usage = command.get_usage(context).removeprefix("Usage: ").translate({ord("{"): None, ord("}"): None})
        parts += [f"## tuner {name}", command.help or "", f"    {usage}", _parameters(command, context)]
        if command.epilog:
            title, *lines = [line.strip() for line in command.epilog.splitlines() if line.strip()]
            parts += [title, "\n".join(f"    {line}" for line in lines)]
    return "\n\n".join(parts) + "\n"


def _parameters(command: Any, context: Any) -> str:
    records = [parameter.get_help_record(context) for parameter in command.params if parameter.name != "help"]
    rows = [(names.replace(" <path>", ""), meaning.replace("|", "&#124;")) for names, meaning in filter(None, records)]
    lines = ["| argument or option | meaning |", "|---|---|"]
    lines += [f"| `{names}` | {meaning} |" for names, meaning in rows]
    return "\n".join(lines)

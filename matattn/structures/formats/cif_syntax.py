"""The data blocks of a CIF (Crystallographic Information File, version 1.1), as text.

Hall, Allen and Brown, Acta Cryst. A 47, 655 (1991). Tags have no case here, and mmCIF's points are
underscores: ``_atom_site.fract_x`` is ``_atom_site_fract_x``. Every block is read by itself, so
that a bad one leaves the others whole; what is wrong with a tag is said when somebody asks for it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from matattn.errors import StructureError

_END_OF_FILE = "\0\x1a \t\n"  # marks of old disks, too
NULL = (".", "?", "")  # "does not apply", "unknown", and a tag without a value

_TOKEN = re.compile(
    r"""
      ^;(?P<field>(?:.*\n)+?);                    # lines between semicolons
    | \#.*                                        # a comment
    | '(?P<single>(?:[^'\n]|'(?=\S))*)'(?=\s|\Z)  # a quote ends before a space only
    | "(?P<double>(?:[^"\n]|"(?=\S))*)"(?=\s|\Z)
    | (?P<open>['"].*|^;(?:.*\n?)*)               # never closed: to the end of the line, or file
    | (?P<word>\S+)
    """,
    re.VERBOSE | re.MULTILINE,
)
_KEYWORD = re.compile(r"data_|loop_$|save_|global_$|stop_$", re.IGNORECASE)


class Block:
    """The items of one ``data_`` block: ``values`` by tag.

    Attributes:
        name: what follows ``data_``.
        line: where the block begins, from 1.
    """

    def __init__(self, name: str, line: int) -> None:
        self.name, self.line = name, line
        self._values: dict[str, list[str]] = {}
        self._problems: dict[str, str] = {}

    def __contains__(self, tag: str) -> bool:
        return tag in self._values

    def add(self, tags: list[str], values: list[str], line: int) -> None:
        """Add a loop, or a tag with its value."""
        names = [tag.lower().replace(".", "_") for tag in tags]
        columns = [values[start :: len(names)] for start in range(len(names))]
        for name, column in zip(names, columns, strict=True):
            if len(values) % len(names):
                self._problems[name] = (
                    f"line {line}: a loop has {len(values)} values for {len(names)} columns, the "
                    f"first of which is {tags[0]}"
                )
            elif self._values.get(name, column) != column:
                self._problems[name] = f"line {line}: {name} is given twice, with different values"
            self._values[name] = column

    def blame(self, tag: str, problem: str) -> None:
        """Remember what is wrong with a tag."""
        self._problems[tag.lower().replace(".", "_")] = problem

    def has(self, prefix: str) -> bool:
        """Return whether a tag begins with ``prefix``."""
        return any(tag.startswith(prefix) for tag in self._values)

    def column(self, *tags: str) -> list[str] | None:
        """Return the values of the first of these tags that the block has.

        Raises StructureError when the tag, or the loop that it stands in, is damaged.
        """
        for tag in tags:
            if tag in self._problems:
                raise StructureError(self._problems[tag])
            if tag in self._values:
                return self._values[tag]
        return None

    def value(self, *tags: str) -> str | None:
        """Return the value of the first of these tags that has one; raises as ``column``."""
        for tag in tags:
            column = self.column(tag)
            if column and column[0] not in NULL:
                return column[0]
        return None


def read_blocks(text: str) -> list[Block]:
    """Return all blocks of a CIF, in order, also those of one name.

    Raises StructureError when nothing in it looks like a CIF.
    """
    blocks = [Block("", 1)]
    text = text.rstrip(_END_OF_FILE)
    tokens = _tokens(text)
    token = next(tokens, None)
    while token is not None:
        kind, content, start = token
        lowered = content.lower() if kind == "word" else ""
        if lowered.startswith("data_"):
            blocks.append(Block(content[5:], _line(text, start)))
            token = next(tokens, None)
        elif lowered == "loop_":
            token = _read_loop(text, tokens, blocks[-1], start)
        elif lowered.startswith("_"):
            token = _read_item(text, tokens, blocks[-1], content, start)
        else:  # a word that belongs to no tag
            token = next(tokens, None)
    read = [block for block in blocks if block.has("_") or block is not blocks[0]]
    if not read:
        raise StructureError("is not a CIF: it has no data_ block")
    return read


_Token = tuple[str, str, int]  # its kind, its content, and where it begins


def _tokens(text: str) -> Iterator[_Token]:
    for match in _TOKEN.finditer(text):
        kind = match.lastgroup
        if kind is not None:  # not a comment
            yield kind, match[kind], match.start()


def _read_loop(text: str, tokens: Iterator[_Token], block: Block, start: int) -> _Token | None:
    """Read a loop into the block; return the token after it."""
    tags: list[str] = []
    values: list[str] = []
    unclosed = None
    for token in tokens:
        kind, content, _ = token
        if kind == "word" and content.startswith("_") and not values:
            tags.append(content)
        elif _ends_value(kind, content):
            break
        else:
            values.append(_text(kind, content))
            unclosed = unclosed or (token if kind == "open" else None)
    else:
        token = None
    if tags:
        block.add(tags, values, _line(text, start))
    if unclosed:
        for tag in tags:
            block.blame(tag, _unclosed(text, unclosed))
    return token


def _read_item(
    text: str, tokens: Iterator[_Token], block: Block, tag: str, start: int
) -> _Token | None:
    """Read the value of a tag into the block; return the token after it.

    A value of several words without quotes, against the rules, ends with its line.
    """
    values: list[str] = []
    token = None
    end = text.find("\n", start)
    for token in tokens:
        kind, content, place = token
        if _ends_value(kind, content) or (values and (kind != "word" or place > end > 0)):
            break
        if kind == "open":
            block.blame(tag, _unclosed(text, token))
        if not values:
            end = text.find("\n", place)
        values.append(_text(kind, content))
        if kind != "word":
            token = next(tokens, None)
            break
    else:
        token = None
    block.add([tag], [" ".join(values)], _line(text, start))
    return token


def _ends_value(kind: str, content: str) -> bool:
    return kind == "word" and (content.startswith("_") or bool(_KEYWORD.match(content)))


def _text(kind: str, content: str) -> str:
    return " ".join(content.split()) if kind == "field" else content.strip()


def _unclosed(text: str, token: _Token) -> str:
    what = "text field" if token[1].startswith(";") else "quote"
    return f"line {_line(text, token[2])}: a {what} is not closed"


def _line(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1

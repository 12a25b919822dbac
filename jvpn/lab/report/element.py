"""HTML and SVG as trees, so that what is written is well-formed and escaped however hostile a text is."""

import re
from typing import Final, TypeAlias
from xml.etree import ElementTree

Element: TypeAlias = ElementTree.Element
Child: TypeAlias = Element | str | None

#: What XML 1.0 has no way to write (section 2.2).
_UNWRITABLE: Final = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def clean(text: str) -> str:
    """With a replacement character for each one that XML cannot carry."""
    return _UNWRITABLE.sub("\ufffd", text)


def el(tag: str, *children: Child, **attributes: str | float | None) -> Element:
    """An element. Names of attributes: `class_` is class, `stroke_width` is stroke-width. None adds nothing."""
    made = Element(tag)
    for name, value in attributes.items():
        if value is not None:
            made.set(name.rstrip("_").replace("_", "-"), _written(value))
    for child in children:
        _append(made, child)
    return made


def _written(value: str | float) -> str:
    return clean(value) if isinstance(value, str) else f"{value:.2f}".rstrip("0").rstrip(".")


def _append(parent: Element, child: Child) -> None:
    if isinstance(child, Element):
        parent.append(child)
    elif child is not None and len(parent) > 0:
        parent[-1].tail = (parent[-1].tail or "") + clean(child)
    elif child is not None:
        parent.text = (parent.text or "") + clean(child)


def as_xml(element: Element) -> str:
    return ElementTree.tostring(element, encoding="unicode")


def as_html(element: Element) -> str:
    """With the doctype of a whole page."""
    return "<!DOCTYPE html>\n" + ElementTree.tostring(element, encoding="unicode", method="html") + "\n"

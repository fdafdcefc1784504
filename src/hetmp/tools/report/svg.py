"""Turn a drawing of matplotlib into an inline element of a page, small and with unique ids."""

import re
import xml.etree.ElementTree as ElementTree

from hetmp.tools.report.canvas import INK

_SVG = "http://www.w3.org/2000/svg"
_HREF = "{http://www.w3.org/1999/xlink}href"
_USED = re.compile(r"url\(#([^)]+)\)")


def inline(drawing: str, name: str, label: str, description: str) -> str:
    """Return the ``<svg>`` element of *drawing* for a page.

    Args:
        drawing: the SVG document.
        name: prefix of its ids, unique within the page.
        label: its title.
        description: its content in words.
    """
    # ElementTree reads no external entities, and the text is matplotlib's own.
    root = ElementTree.fromstring(drawing)
    for parent in list(root.iter()):
        for child in list(parent):
            # Its style would hold for the whole page.
            if child.tag in (f"{{{_SVG}}}metadata", f"{{{_SVG}}}style"):
                parent.remove(child)
    used = _used_ids(root)
    for element in root.iter():
        _rewrite(element, name, used)
    for size in ("width", "height", "version"):
        root.attrib.pop(size, None)
    described = f"{name}-words"
    root.attrib |= {"role": "img", "aria-label": label, "aria-describedby": described}
    words = ElementTree.Element(f"{{{_SVG}}}desc", {"id": described})
    words.text = description
    root.insert(0, words)
    ElementTree.register_namespace("", _SVG)
    text = ElementTree.tostring(root, encoding="unicode")
    return re.sub(r">\s+<", "><", text)


def _used_ids(root: ElementTree.Element) -> set[str]:
    ids: set[str] = set()
    for element in root.iter():
        if _HREF in element.attrib:
            ids.add(element.attrib[_HREF].removeprefix("#"))
        for value in element.attrib.values():
            ids.update(_USED.findall(value))
    return ids


def _rewrite(element: ElementTree.Element, name: str, used: set[str]) -> None:
    attributes = element.attrib
    if "id" in attributes:
        if attributes["id"] in used:
            attributes["id"] = f"{name}-{attributes['id']}"
        else:
            del attributes["id"]
    if _HREF in attributes:
        attributes["href"] = f"#{name}-{attributes.pop(_HREF).removeprefix('#')}"
    for key, value in attributes.items():
        if "#" in value and key != "href":
            value = _USED.sub(rf"url(#{name}-\1)", value)
            attributes[key] = value.replace(INK, "currentColor")
    if "d" in attributes:
        attributes["d"] = " ".join(attributes["d"].split())
    if element.tag == f"{{{_SVG}}}text":
        attributes["style"] = _text_style(attributes.get("style", ""))


def _text_style(style: str) -> str:
    """Return a style with the page's own font, and its colour if the text has none."""
    size = re.search(r"([\d.]+)px", style)
    parts = [
        part.strip()
        for part in style.split(";")
        if part.strip() and not part.strip().startswith("font")
    ]
    if not any(part.startswith("fill:") for part in parts):
        parts.append("fill: currentColor")
    return "; ".join([f"font-size: {size[1] if size else 9}px", *parts])

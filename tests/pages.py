"""A page of a report, read as a browser would read it."""

import json
from html.parser import HTMLParser

VOID = {"meta", "link", "img", "input", "br"}


class Reader(HTMLParser):
    """The elements of a page: (tag, attributes, text), each text that of all inside."""

    def __init__(self, html):
        super().__init__()
        self.open, self.elements = [], []
        self.feed(html)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        assert len(attributes) == len(dict(attributes)), f"an attribute twice: {attributes}"
        element = [tag, dict(attributes), ""]
        self.elements.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_endtag(self, tag):
        element = self.open.pop()
        assert element[0] == tag, f"{element} closed by {tag} at {self.getpos()}"

    def handle_data(self, data):
        for element in self.open:
            element[2] += data

    def all(self, tag, **wanted):
        wanted = {key.rstrip("_"): value for key, value in wanted.items()}
        return [
            (attributes, text)
            for name, attributes, text in self.elements
            if name == tag and wanted.items() <= attributes.items()
        ]

    def texts(self, tag, **wanted):
        return [text for _, text in self.all(tag, **wanted)]

    @property
    def data(self):
        return json.loads(self.texts("script", id="data")[0])


def class_rows(reader):
    """Name: texts of the cells, of the table of classes."""
    cells = [
        (tag, attributes, text)
        for tag, attributes, text in reader.elements
        if tag in ("th", "td") and "data-value" in attributes
    ]
    rows = {}
    for tag, _, text in cells:
        if tag == "th":
            row = rows.setdefault(text, [])
        else:
            row.append(text)
    return rows

"""A JSON Schema of a file that people write, for their editors: made from its model.

Descriptions are those of the model's docstrings: a key gets the sentences that name it.
"""

from __future__ import annotations

import inspect
import re
from typing import Any

import msgspec

_SENTENCE = re.compile(r"(?<=\.)\s+|\n\n")


def json_schema(model: type, title: str) -> dict[str, Any]:
    """Schema (2020-12) of a msgspec struct and all below it."""
    document = msgspec.json.schema(model)
    for section in document["$defs"].values():
        words = inspect.cleandoc(section.get("description", "")).replace("``", "`")
        section["description"] = re.sub(r"(?<!\n)\n(?!\n)", " ", words)
        sentences = [" ".join(part.split()) for part in _SENTENCE.split(words)]
        for name, key in section["properties"].items():
            about = [sentence for sentence in sentences if f"`{name}`" in sentence]
            if about:
                key["description"] = " ".join(about)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": title} | document

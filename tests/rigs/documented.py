"""What the AsyncAPI document says of a message."""

from __future__ import annotations

from typing import Any

import jsonschema

from edge.contract.asyncapi import message_key


def invalid(document: dict[str, Any], topic: str, message: dict[str, Any]) -> str | None:
    """Why this is no message of the document on this topic; None where it is one."""
    key = message_key(topic, message)
    if key not in document["components"]["messages"]:
        return f"there is no {key}"
    # The document's references are to the document.
    schema = {**document, "allOf": [{"$ref": f"#/components/messages/{key}/payload"}]}
    error = jsonschema.exceptions.best_match(jsonschema.Draft7Validator(schema).iter_errors(message))
    return None if error is None else f"{key}: {error.message}"

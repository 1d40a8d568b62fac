"""Validate messages against the AsyncAPI document."""

from __future__ import annotations

from typing import Any

import jsonschema

from edge.contract.asyncapi import message_key


def invalid(document: dict[str, Any], topic: str, message: dict[str, Any]) -> str | None:
    """Returns: why the document does not allow this message on this topic, or None if it does."""
    key = message_key(topic, message)
    if key not in document["components"]["messages"]:
        return f"the document has no message {key}"
    # References in the document are relative to the document.
    schema = {**document, "allOf": [{"$ref": f"#/components/messages/{key}/payload"}]}
    error = jsonschema.exceptions.best_match(jsonschema.Draft7Validator(schema).iter_errors(message))
    return None if error is None else f"{key}: {error.message}"

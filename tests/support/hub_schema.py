"""The Hub's two formats as their documentation states them: what is required, what is allowed.

huggingface.co/docs/hub/eval-results; `eval_results.yaml` and `modelcard.md` in huggingface/hub-docs.
"""

from typing import Any

Schema = dict[str, Any]
REQUIRED, OPTIONAL = "required", "optional"

EVAL_ENTRY: Schema = {
    "dataset": (REQUIRED, {"id": (REQUIRED, str), "task_id": (REQUIRED, str), "revision": (OPTIONAL, str)}),
    "value": (REQUIRED, (int, float)),
    "verifyToken": (OPTIONAL, str),
    "date": (OPTIONAL, str),
    "source": (
        OPTIONAL,
        {"url": (REQUIRED, str), "name": (OPTIONAL, str), "user": (OPTIONAL, str), "org": (OPTIONAL, str)},
    ),
    "evaluation_framework": (OPTIONAL, str),
    "notes": (OPTIONAL, str),
}  # fmt: skip
METRIC: Schema = {
    "type": (REQUIRED, str),
    "value": (REQUIRED, (int, float)),
    "name": (OPTIONAL, str),
    "config": (OPTIONAL, str),
    "args": (OPTIONAL, dict),
    "verified": (OPTIONAL, bool),
    "verifyToken": (OPTIONAL, str),
}
RESULT: Schema = {
    "task": (REQUIRED, {"type": (REQUIRED, str), "name": (OPTIONAL, str)}),
    "dataset": (
        REQUIRED,
        {
            "type": (REQUIRED, str),
            "name": (REQUIRED, str),
            "config": (OPTIONAL, str),
            "split": (OPTIONAL, str),
            "revision": (OPTIONAL, str),
            "args": (OPTIONAL, dict),
        },
    ),
    "metrics": (REQUIRED, [METRIC]),
    "source": (OPTIONAL, {"name": (OPTIONAL, str), "url": (REQUIRED, str)}),
}
MODEL: Schema = {"name": (REQUIRED, str), "results": (REQUIRED, [RESULT])}


def faults(value: Any, schema: Any, where: str = "") -> list[str]:
    """Return in what a value is not as the schema says."""
    if isinstance(schema, list):
        if not isinstance(value, list) or not value:
            return [f"{where} should be a list that is not empty"]
        return [f for i, item in enumerate(value) for f in faults(item, schema[0], f"{where}[{i}]")]
    if not isinstance(schema, dict):
        # a bool is an int for Python
        fits = isinstance(value, schema) and (schema is bool or not isinstance(value, bool))
        return [] if fits else [f"{where} is {value!r}"]
    if not isinstance(value, dict):
        return [f"{where} should be a mapping"]
    found = [f"{where}.{key} is not known" for key in value if key not in schema]
    for key, (need, inner) in schema.items():
        if key in value:
            found += faults(value[key], inner, f"{where}.{key}")
        elif need == REQUIRED:
            found.append(f"{where}.{key} is missing")
    return found

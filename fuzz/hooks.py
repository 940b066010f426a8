"""Keeps the requests that schemathesis makes up small, so that a round tries many and not a few long ones."""

import schemathesis

# Fields that a request's work grows with, and the largest value that is sent of a number that would be allowed.
LARGEST = {
    "max_tokens": 24,
    "max_completion_tokens": 24,
    "min_tokens": 24,
    "tokens": 24,
    "n_predict": 24,
    "steps": 16,
    "n": 3,
    "samples": 8,
    "strata": 8,
}


def small(value):
    if isinstance(value, list):
        return [small(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {name: bounded(name, field) for name, field in value.items()}


def bounded(name, field):
    is_number = isinstance(field, int) and not isinstance(field, bool)
    # What is out of range stays so: it is to be refused.
    if name in LARGEST and is_number and LARGEST[name] < field < 2**16:
        return LARGEST[name]
    return small(field)


@schemathesis.hook
def map_body(context, body):
    return small(body)

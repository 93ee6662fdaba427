"""Not yet."""


def page(document: object, found: object) -> str:
    """Not yet."""
    return str(document)

"""`titer compare RUN…`: candidates of several runs side by side."""


def register(app) -> None:
    pass

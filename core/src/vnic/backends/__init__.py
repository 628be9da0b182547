"""Two backends without a host network: read them first, before you write one of your own.

`null` is the least that a backend is, `loop` has all that most of them need.  They are plugins like
any other: the entry points are in core's ``pyproject.toml``, the contract suite is run over both.
"""

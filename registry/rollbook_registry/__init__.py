"""The registry: the book itself.

One way round: **api -> catalog -> events -> {push, metrics}**. The catalog is changed in one place, by
commands, and nobody else holds a mutable reference into it.
"""

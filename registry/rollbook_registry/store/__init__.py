"""The store: what outlives the registry's process.

Two halves that have nothing to do with each other but the disk. What somebody has laid down
(:mod:`.rulings`) goes through a :class:`~.store.Store` and is acknowledged when it is committed. What lives
by beats is saved now and then by the :class:`~.keeper.Keeper`, so that a restart begins with a book.
"""

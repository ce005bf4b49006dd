"""The sidecar: beside each pod, it answers the roll for the application and looks others up for it.

What it does, a module each: :mod:`.registration` and :mod:`.registrar` (what it says about its application,
and keeping that said), :mod:`.health` (whether the application works), :mod:`.cache` and :mod:`.lookups` (the
lists, and how they are asked for), :mod:`.drain` and :mod:`.hooks` (leaving without dropping a request).

What it does not do yet: it keeps no copy of its lists on disk, so after a restart without a registry it knows
nothing (it says 503, never an empty list); it proxies nothing; it offers the strategies of
:mod:`rollbook.balance` only; outside Kubernetes it chooses its address once, at the start; it serves no TLS;
``GET /services`` lists what it follows itself, since the session has no way yet to ask for all names.
"""

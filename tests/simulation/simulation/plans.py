"""Plans: what goes wrong in a run. Each is drawn from the seed; each says what must hold all the while."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

    from simulation.run import Run


class Plan(NamedTuple):
    """A plan of faults.

    Attributes:
        run: makes them happen; returns when the last one has begun to heal.
        weight: how often it is drawn.
        orderly: links deliver in order and once, as TCP does, so copies must never differ.
        any_size: whether it fits two and five replicas too.
        forgetful: whether a replica may expire, or die, with a change that only it has heard of, so that what
            counts is what others have heard before: light beats don't say it again.
    """

    run: Callable[[Run], None]
    weight: int = 1
    orderly: bool = True
    any_size: bool = False
    forgetful: bool = False


def life(run: Run) -> None:
    """What goes on in any case: clients come, change, move, go; pods end."""
    rng = run.rng
    others = [p for p in run.publishers if p is not run.operator and not p.name.startswith("anchor")]
    for _ in range(rng.randint(2, 6)):
        publisher = rng.choice(others)
        what = rng.choice([publisher.change, publisher.change, publisher.die, publisher.release])
        run.world.after(rng.random() * 60.0, what)
    for uid in run.pods:
        if rng.random() < 0.5:
            fence = rng.random() < 0.5
            run.world.after(rng.random() * 60.0, lambda u=uid, f=fence: run.operator.end_pod(u, fence=f))


def quiet(run: Run) -> None:
    """Nothing goes wrong: nobody may notice anything, and no metric of ours either."""
    life(run)
    run.observer.must_not_flap()
    run.world.run(run.world.now + 60.0)


def one_dies(run: Run) -> None:
    """One of three is killed, and comes back or not: no flap, no empty list."""
    life(run)
    run.observer.must_not_flap()
    rng, world = run.rng, run.world
    world.run(world.now + rng.random() * 10.0)
    node = rng.choice(run.nodes)
    node.crash(told=rng.random() < 0.5)
    away = rng.choice([0.5, 3.0, 10.0, 40.0, 60.0]) * (0.5 + rng.random())
    world.run(world.now + away)
    node.start(disk=rng.random() < 0.5)
    world.run(world.now + 15.0)


def dead_for_good(run: Run) -> None:
    """A replica dies with some of its clients and stays away: what they had entered must go."""
    life(run)
    run.observer.must_not_flap()
    rng, world = run.rng, run.world
    world.run(world.now + 5.0)
    node = rng.choice(run.nodes)
    anchored = {p.name for p in run.publishers if p.name.startswith("anchor")}
    for publisher in run.publishers:
        at_home = publisher.process is not None and publisher.process.node is node
        if at_home and publisher.name not in anchored and publisher is not run.operator:
            publisher.die()
    node.crash(told=rng.random() < 0.5)
    # 2 s until it is lost, 45 until its leases are hidden; what the others had by then expires, in windows.
    world.run(world.now + 60.0)
    for _ in range(6):
        if any(run.observer.dead(n.process) for n in run.nodes if n is not node):
            world.run(world.now + 60.0)
    run.observer.dead_owner(node)


def rolling(run: Run) -> None:
    """A rolling restart, each replica saying goodbye: nobody may notice."""
    life(run)
    run.observer.must_not_flap()
    rng, world = run.rng, run.world
    for node in run.nodes:
        node.leave()
        for publisher in run.publishers:
            process = publisher.process
            if process is not None and process.node is node:
                world.after(0.2, publisher.told_to_move, process)
        world.run(world.now + 1.0 + rng.random() * 5.0)
        node.start(disk=rng.random() < 0.7)
        while node.process is None or not node.process.ready:
            world.run(world.now + 0.5)
        world.run(world.now + rng.random() * 5.0)


def minority(run: Run) -> None:
    """One replica is cut off from the others, for longer than orphans are kept."""
    life(run)
    rng, world = run.rng, run.world
    node = rng.choice(run.nodes)
    before = node.process.catalog.services.instances
    names = [n.name for n in run.nodes if n is not node]
    run.network.separate([node.name], names)
    clients = [c.name for c in (*run.publishers, *run.subscribers)]
    how = rng.choice(["replicas only", "clients too", "all clients"])
    world.note("cut off", node.name, how)
    if how == "clients too":
        run.network.separate([node.name], [c for c in clients if rng.random() < 0.7])
    elif how == "all clients":
        run.network.separate([node.name], clients)
    else:
        # Clients reach everybody, so by the time that the others give the replica up they have moved on.
        world.after(15.0, lambda: run.observer.must_not_flap(sessions_only=True))
    world.run(world.now + rng.choice([20.0, 50.0, 100.0]))
    run.observer.minority(node, before)
    run.observer.steady = False
    run.network.heal()


def one_line(run: Run) -> None:
    """The line between two of the replicas is cut, in one direction or both; the third hears everybody."""
    life(run)
    rng, world = run.rng, run.world
    one, other, *_ = rng.sample(run.nodes, len(run.nodes))
    run.network.separate([one.name], [other.name], both=rng.random() < 0.5)
    world.note("cut", sorted(run.network.cut))
    run.observer.must_not_flap()
    world.run(world.now + rng.choice([10.0, 50.0, 80.0]))
    run.network.heal()


def all_die(run: Run) -> None:
    """All are killed at once and come back, some with their disks, in any order."""
    life(run)
    rng, world = run.rng, run.world
    world.run(world.now + 10.0)
    for node in run.nodes:
        node.crash(told=True)
    world.run(world.now + rng.random() * 20.0)
    disks = [rng.random() < 0.7 for _ in run.nodes]
    for node, disk in zip(run.nodes, disks, strict=True):
        world.after(rng.random() * 4.0, lambda n=node, d=disk: n.start(disk=d))
    world.run(world.now + 30.0)


def old_replica(run: Run) -> None:
    """A replica comes back with an old disk while it is cut off, and only then meets the others."""
    life(run)
    rng, world = run.rng, run.world
    world.run(world.now + 10.0)
    node = rng.choice(run.nodes)
    node.crash(told=True)
    world.run(world.now + 60.0)
    others = [n.name for n in run.nodes if n is not node]
    everybody = [c.name for c in (*run.publishers, *run.subscribers)]
    run.network.separate([node.name], others)
    if rng.random() < 0.5:
        run.network.separate([node.name], everybody)
    node.start(disk=True)
    world.run(world.now + rng.choice([7.0, 20.0, 40.0]))
    run.network.heal()


def chaos(run: Run) -> None:
    """Everything at once."""
    life(run)
    rng, world, network = run.rng, run.world, run.network
    end = world.now + 90.0
    network.loss = rng.choice([0.0, 0.0, 0.02, 0.2])
    network.slow = rng.choice([0.005, 0.05, 1.0])
    everybody = [c.name for c in (*run.publishers, *run.subscribers)]
    names = [n.name for n in run.nodes]
    while world.now < end:
        node = rng.choice(run.nodes)
        match rng.choice(
            ["crash", "start", "start", "stall", "cut", "client cut", "heal", "leave", "kill all"]
        ):
            case "crash":
                node.crash(told=rng.random() < 0.5)
            case "start":
                node.start(disk=rng.random() < 0.6)
            case "leave":
                node.leave()
            case "stall":
                node.stall(rng.choice([0.5, 3.0, 10.0]) * rng.random())
            case "cut":
                some = [n for n in names if rng.random() < 0.5]
                network.separate(some, [n for n in names if n not in some], both=rng.random() < 0.6)
            case "client cut":
                some = [c for c in everybody if rng.random() < 0.3]
                network.separate(some, [node.name], both=rng.random() < 0.7)
            case "heal":
                network.cut.clear()
            case "kill all":
                if rng.random() < 0.2:
                    for one in run.nodes:
                        one.crash(told=True)
        world.note("network", sorted(network.cut))
        world.run(world.now + rng.random() * rng.choice([2.0, 10.0, 30.0]))


def disorder(run: Run) -> None:
    """As chaos, with a network that delivers in any order and sometimes twice."""
    run.network.disorder = True
    run.network.copies = 0.1
    chaos(run)


PLANS: dict[str, Plan] = {
    "quiet": Plan(quiet, 1, any_size=True),
    "one_dies": Plan(one_dies, 4),
    "dead_for_good": Plan(dead_for_good, 2),
    "rolling": Plan(rolling, 2),
    "minority": Plan(minority, 3, forgetful=True),
    "one_line": Plan(one_line, 3),
    "all_die": Plan(all_die, 3, any_size=True, forgetful=True),
    "old_replica": Plan(old_replica, 2, forgetful=True),
    "chaos": Plan(chaos, 8, any_size=True, forgetful=True),
    "disorder": Plan(disorder, 4, orderly=False, any_size=True, forgetful=True),
}

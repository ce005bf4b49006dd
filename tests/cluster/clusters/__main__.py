"""`python -m clusters`: the test cluster from a shell."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from clusters.api import Cluster, ClusterError
from clusters.choose import choose
from clusters.session import DEFAULT_TAG, images_of_the_project, keep, session_lock

REPOSITORY = Path(__file__).resolve().parents[3]


def main() -> int:
    """Run one command; errors are one line and exit status 1."""
    parser = argparse.ArgumentParser(
        prog="python -m clusters",
        description="The test cluster. Which one: ROLLBOOK_CLUSTER (auto, kind, testbed, kubeconfig).",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    up = commands.add_parser("up", help="start it, or repair it, building it first if need be; it stays up")
    up.add_argument("level", nargs="?", choices=["control", "node"], default="node", help="default: node")
    up.add_argument("--kwok", action="store_true", help="simulate the nodes labelled type=kwok")
    down = commands.add_parser("down", help="stop it and leave nothing behind on the machine")
    down.add_argument("--wipe", action="store_true", help="forget its objects, images and logs too")
    commands.add_parser("status", help="what there is of it now")
    images = commands.add_parser("images", help="build the project's images and put them on the node")
    images.add_argument("--context", type=Path, default=REPOSITORY, help="default: this repository")
    images.add_argument("--tag", default=DEFAULT_TAG, help="default: %(default)s")
    logs = commands.add_parser("logs", help="write all logs, descriptions and events into a directory")
    logs.add_argument("directory", type=Path)
    commands.add_parser("env", help='print the environment to use it: eval "$(python -m clusters env)"')
    arguments = parser.parse_args()
    try:
        _run(choose(), arguments)
    except ClusterError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _run(cluster: Cluster, arguments: argparse.Namespace) -> None:
    lines: list[str] = []
    match arguments.command:
        case "up":
            with session_lock(cluster, "bringing the test cluster up", wait=0):
                cluster.up(arguments.level, kwok=arguments.kwok)
                keep(cluster, wanted=True)
            lines = cluster.status()
        case "down":
            with session_lock(cluster, "taking the test cluster down", wait=0):
                cluster.down(wipe=arguments.wipe)
                keep(cluster, wanted=False)
        case "status":
            lines = cluster.status()
        case "images":
            lines = list(images_of_the_project(cluster, arguments.context, arguments.tag).values())
        case "logs":
            cluster.collect_logs(arguments.directory.absolute())
            lines = [str(arguments.directory)]
        case "env":
            lines = [
                f"export KUBECONFIG={shlex.quote(str(cluster.kubeconfig))}",
                f'export PATH={shlex.quote(str(cluster.bin_dir))}:"$PATH"',
            ]
    sys.stdout.write("".join(f"{line}\n" for line in lines))


if __name__ == "__main__":
    sys.exit(main())

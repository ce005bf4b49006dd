#!/bin/bash
# base.sh OUT.tar WORK [MIRROR]: the root file system of a stand-in for python:3.11-slim, as a tar.
#
# There is no registry here to pull the real one from. What matters to a Dockerfile is Debian 12 underneath, Python 3.11
# in /usr/local with its pip, and site-packages in /usr/local/lib/python3.11. Debian's own Python installs elsewhere
# (dist-packages, and refuses pip altogether), so it is put behind a virtual environment that *is* /usr/local: the same
# interpreter, the official image's paths.
#
# Run in a mount namespace of its own (`unshare --mount`): what debootstrap mounts vanishes with the process, however
# it ends.
set -euo pipefail
out=$1 root=$2/root mirror=${3:-}
mkdir -p "$2"

debootstrap --variant=minbase --include=ca-certificates,netbase,tzdata,python3.11,python3.11-venv,python3-distutils \
  bookworm "$root" ${mirror:+"$mirror"}
in_root() { chroot "$root" /usr/bin/env -i PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 "$@"; }
in_root python3.11 -m venv /usr/local
# The official image has `pip` as well as `pip3`, and so on; venv makes most of these names itself.
for name in python python3; do in_root ln -sf python3.11 "/usr/local/bin/$name"; done
in_root python3 -c 'import sys, ssl, sqlite3, ctypes; assert sys.prefix == "/usr/local", sys.prefix'
in_root pip --version
# Where a build mounts the machine's pip configuration and download cache: were these places missing here, each build
# would leave them behind, empty, in a layer of its image.
in_root touch /etc/pip.conf
in_root mkdir /var/cache/testbed
# What an image has no use for.
in_root sh -c 'rm -rf /var/cache/apt/archives/*.deb /var/cache/apt/*.bin /var/lib/apt/lists/* /var/log/* /tmp/* \
  /usr/share/doc/* /usr/share/man/* /usr/share/info/* /usr/share/locale/*'
# The official image has no bytecode; this one keeps it, because each RUN of a build starts pip.
tar -C "$root" --numeric-owner --one-file-system --exclude=./proc/* --exclude=./sys/* --exclude=./dev/* -cf "$out" .
rm -rf "$root"

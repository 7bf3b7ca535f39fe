#!/bin/sh
# Unpack the programs that the tests beside this file run, unmodified from Debian, with what they need and
# this machine lacks. Nothing is installed: that would start daemons and, with ksmtuned, the kernel's KSM.
#
#   tests/clients/get.sh DIR      as root; then there is DIR/usr/bin/virsh, and so on
set -eu
archives=$1/archives
mkdir -p "$archives/partial"

download() {
	apt-get install -qq -y --download-only --reinstall --no-install-recommends \
		-o Dir::Cache::Archives="$archives" -o DPkg::Lock::Timeout=120 \
		prometheus-node-exporter ksmtuned libvirt-clients libvirt-daemon-driver-qemu
}

# An old list of packages names archives that are there no more.
download || { apt-get update -qq && download; }
for archive in "$archives"/*.deb; do
	dpkg -x "$archive" "$1"
done

#!/bin/sh
# Removes from a Debian image with Python what a running service has no use for. Last of all itself.
set -eu
library=$(python3 -c 'import sysconfig; print(sysconfig.get_paths()["stdlib"])')
rm -rf /usr/lib/python3 /usr/share/python-wheels /usr/local/bin/pip* /usr/bin/pip* "$library"/site-packages "$library"/ensurepip "$library"/test "$library"/idlelib \
    "$library"/turtledemo "$library"/lib2to3
rm -rf /usr/share/perl /usr/share/perl5 /usr/lib/*/perl /usr/lib/*/perl-base /usr/lib/*/libperl.so* /usr/bin/perl*
rm -rf /usr/lib/apt /usr/bin/apt* /var/lib/apt /var/cache/apt /var/cache/debconf /var/lib/dpkg/info /usr/share/doc /usr/share/man /usr/share/info \
    /usr/share/locale /usr/share/lintian /var/log/* "${HOME:?}/.cache" /tmp/*
rm -rf /usr/lib/*/gconv /usr/lib/*/libapt-*.so* "$library"/pydoc_data
rm -f "$0"

#!/bin/sh
# Debian and RPM alike. Nothing is started, enabled or restarted: when, and in
# which order, is docs/install.md's matter.
set -e
if command -v systemd-sysusers >/dev/null 2>&1; then
	systemd-sysusers aimlock.conf || echo "aimlock: the user aimlock could not be made: aimlock-locksmith.service needs it" >&2
fi
if [ -d /run/systemd/system ]; then
	systemctl daemon-reload || :
fi
exit 0

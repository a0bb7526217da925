#!/bin/sh
# dpkg says purge for what `apt purge` removes beside the package's files; the state
# of the agent and tokens stay otherwise, and always with rpm.
set -e
case "${1:-}" in
purge)
	rm -rf /var/lib/aimlock /var/lib/aimlock-locksmith
	rm -f /etc/aimlock/agent.token /etc/aimlock/locksmith.token
	;;
esac
if [ -d /run/systemd/system ]; then
	systemctl daemon-reload || :
fi
exit 0

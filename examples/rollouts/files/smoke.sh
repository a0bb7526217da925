#!/bin/sh
# A gate of the kind exec: 0 is pass, 1 is fail, everything else is unknown. The
# file that AIMLOCK_UPDATED_NODES names has one updated node a line.
set -u
while read -r node; do
  curl --silent --show-error --fail --max-time 5 "http://$node:8080/ready" >/dev/null
  case $? in
    0) ;;
    22) echo "$node is not ready"; exit 1 ;; # it answered, and not with success
    *) echo "$node cannot be asked"; exit 2 ;;
  esac
done <"$AIMLOCK_UPDATED_NODES"
echo "all updated nodes are ready"

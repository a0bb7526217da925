# Looks and changes nothing: lock list|status|explain|watch, rollout
# list|status|watch|report, policy show.
#
# Contents of configs are not for everybody who looks: rollout plan, which shows
# their difference, wants read on PREFIX/configs/ too. For locks of other tools,
# add read on their keys.

key_prefix "PREFIX/" {
  policy = "read"
}

key_prefix "PREFIX/configs/" {
  policy = "deny"
}

# Without these, sessions, checks and nodes are not shown, and what rests on
# them is UNKNOWN.
session_prefix "" {
  policy = "read"
}

node_prefix "" {
  policy = "read"
}

service_prefix "" {
  policy = "read"
}

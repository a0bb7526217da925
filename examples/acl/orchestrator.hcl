# Runs rollouts: rollout start|tick|plan and all orders. It takes the locks of
# its configs, and breaks those that are HOT as a locksmith does.
#
# Apply policies first (aimlock policy apply, with a token of the role admin): to
# check that none are applied, Consul asks for write on PREFIX/policies/active, and
# who has that decides what is broken.

key_prefix "PREFIX/configs/" {
  policy = "write"
}

key_prefix "PREFIX/desired/" {
  policy = "write"
}

key_prefix "PREFIX/actual/" {
  policy = "read"
}

key_prefix "PREFIX/rollouts/" {
  policy = "write"
}

key_prefix "PREFIX/queue/" {
  policy = "write"
}

# Write is full authority over the locks.
key_prefix "PREFIX/locks/" {
  policy = "write"
}

# What stands beside a lock. A break checks that the records which its verdict
# did not find are still not there, and for that Consul asks for write.
key_prefix "PREFIX/progress/" {
  policy = "write"
}

key_prefix "PREFIX/fence/" {
  policy = "write"
}

key_prefix "PREFIX/writes/" {
  policy = "write"
}

key_prefix "PREFIX/requests/" {
  policy = "write"
}

key_prefix "PREFIX/approvals/" {
  policy = "write"
}

key_prefix "PREFIX/silences/" {
  policy = "write"
}

key_prefix "PREFIX/observed/" {
  policy = "write"
}

key_prefix "PREFIX/breaks/" {
  policy = "write"
}

key_prefix "PREFIX/budgets/" {
  policy = "write"
}

key_prefix "PREFIX/policies/" {
  policy = "read"
}

key "PREFIX/policies/suspended" {
  policy = "write"
}

key "PREFIX/epoch" {
  policy = "read"
}

# Its own session, and an end to that of the holder whose lock was broken,
# which stands on another node.
session_prefix "" {
  policy = "write"
}

service "aimlock-holder" {
  policy = "write"
}

node_prefix "" {
  policy = "read"
}

service_prefix "" {
  policy = "read"
}

# The agent of one node, and of no other: agent, agent apply|status. It reads what
# its node shall have, and writes what that has and what it sees of the holders on
# its host.

# each CONFIG
key_prefix "PREFIX/configs/CONFIG/" {
  policy = "read"
}

key "PREFIX/desired/CONFIG/NODE" {
  policy = "read"
}

key "PREFIX/actual/CONFIG/BUCKET/NODE" {
  policy = "write"
}

# end
# Its own service, by which others see that it lives.
service "aimlock-agent" {
  policy = "write"
}

# What it tells other hosts of holders on its own: whether they live.
# each LOCK
key "PREFIX/observed/LOCK/CONSULNODE" {
  policy = "write"
}

# end
# The locksmith's own lock, should one run here.
key "PREFIX/observed/aimlock.locksmith/CONSULNODE" {
  policy = "write"
}

# Records of who holds what, with hosts, users and process ids: no contents.
key_prefix "PREFIX/locks/" {
  policy = "read"
}

key_prefix "PREFIX/progress/" {
  policy = "read"
}

agent "CONSULNODE" {
  policy = "read"
}

node "CONSULNODE" {
  policy = "read"
}

# A prefix, since Consul (1.14.11) compares the rule with the id of a service,
# aimlock-holder-…, where it lists those of a node.
service_prefix "aimlock-holder" {
  policy = "read"
}

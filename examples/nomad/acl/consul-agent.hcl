# aimlock-agent in Consul. One policy for all nodes: the identity of a task does not
# say which client it runs on, so that no rule can tell one node's report from
# another's.

key_prefix "aimlock/configs/" {
  policy = "read"
}

key_prefix "aimlock/desired/" {
  policy = "read"
}

key_prefix "aimlock/actual/" {
  policy = "write"
}

# What it tells other hosts of the holders on its own.
key_prefix "aimlock/observed/" {
  policy = "write"
}

key_prefix "aimlock/locks/" {
  policy = "read"
}

key_prefix "aimlock/progress/" {
  policy = "read"
}

service "aimlock-agent" {
  policy = "write"
}

service "aimlock-holder" {
  policy = "read"
}

node_prefix "" {
  policy = "read"
}

agent_prefix "" {
  policy = "read"
}

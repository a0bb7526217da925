# A person who gives orders and lets locks be broken, and does neither himself:
# lock request|approve|silence, policy suspend|resume, rollout
# pause|resume|abort|skip|promote|rollback of a rollout that runs, and all that
# an observer sees. An order for a rollout that nobody drives is carried out by
# who gives it, and wants orchestrator.hcl.

key_prefix "PREFIX/" {
  policy = "read"
}

key_prefix "PREFIX/configs/" {
  policy = "deny"
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

key "PREFIX/policies/suspended" {
  policy = "write"
}

# An order stands at PREFIX/rollouts/ID/command, which no rule can tell from the
# rest of the rollout.
key_prefix "PREFIX/rollouts/" {
  policy = "write"
}

key_prefix "PREFIX/queue/" {
  policy = "write"
}

session_prefix "" {
  policy = "read"
}

node_prefix "" {
  policy = "read"
}

service_prefix "" {
  policy = "read"
}

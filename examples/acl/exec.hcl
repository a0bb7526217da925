# Runs commands under a lock: lock exec. It breaks the lock if it is HOT, as
# a locksmith does, and holds no other.
#
# Apply policies first (aimlock policy apply, with a token of the role admin): to
# check that none are applied, Consul asks for write on PREFIX/policies/active, and
# who has that decides what is broken.

# each LOCK
key "PREFIX/locks/LOCK" {
  policy = "write"
}

key "PREFIX/progress/LOCK" {
  policy = "write"
}

key "PREFIX/fence/LOCK" {
  policy = "write"
}

key "PREFIX/writes/LOCK" {
  policy = "write"
}

key "PREFIX/requests/LOCK" {
  policy = "write"
}

key "PREFIX/approvals/LOCK" {
  policy = "write"
}

key "PREFIX/silences/LOCK" {
  policy = "write"
}

key_prefix "PREFIX/observed/LOCK/" {
  policy = "write"
}

key_prefix "PREFIX/breaks/LOCK/" {
  policy = "write"
}

# end
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

# Its own session, and an end to that of the holder whose lock was broken.
session_prefix "" {
  policy = "write"
}

service "aimlock-holder" {
  policy = "write"
}

node_prefix "" {
  policy = "read"
}

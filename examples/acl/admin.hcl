# Says which policies are in force, and repairs after Consul was restored from a
# snapshot: policy apply, recover. It is for rare days: a token that is made for
# the occasion, with an expiry.

key_prefix "PREFIX/" {
  policy = "write"
}

# recover ends the sessions of all holders.
session_prefix "" {
  policy = "write"
}

# Settings of both services, aimlock-agent and aimlock-locksmith. Commands of yours read
# them with -config /etc/aimlock/aimlock.hcl, or AIMLOCK_CONFIG. Everybody may read this
# file: it holds no token, which has a file of its own (see agent.env and locksmith.env).
#
# All settings: https://github.com/aim-control/aimlock/blob/main/docs/cli.md#settings

# prefix = "aimlock/"

# What locks are judged by; without it, the policy `default` that is shipped. After
# `aimlock policy apply` only who has the very policies that were applied breaks locks.
# policies = ["/etc/aimlock/policies/"]

# consul {
#   address     = "https://127.0.0.1:8501"
#   ca_cert     = "/etc/aimlock/consul-agent-ca.pem"
# }

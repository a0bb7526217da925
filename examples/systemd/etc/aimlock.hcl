# Settings of both services, aimlock-agent and aimlock-locksmith. Commands of yours read
# them with -config /etc/aimlock/aimlock.hcl, or AIMLOCK_CONFIG. Everybody may read this
# file: it holds no token, which has a file of its own (see agent.env and locksmith.env).
#
# All settings: https://github.com/aim-control/aimlock/blob/main/docs/cli.md#settings

# prefix   = "aimlock/"
# policies = ["/etc/aimlock/policies/"] # without: the policy `default` that is shipped

# consul {
#   address     = "https://127.0.0.1:8501"
#   ca_cert     = "/etc/aimlock/consul-agent-ca.pem"
# }

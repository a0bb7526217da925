# Delivers a config by consul-template in place of `aimlock agent`. It takes
# CONSUL_HTTP_ADDR, CONSUL_HTTP_TOKEN and the AIMLOCK_… variables that README.md
# names from the environment. One template block delivers one config.

consul {
  retry {
    enabled  = true
    attempts = 0 # for ever: without Consul the node keeps what it has
  }
}

template {
  source      = "/etc/aimlock/aimlock.ctmpl"
  destination = "/var/lib/aimlock/staged"
  perms       = "0600"

  # A value that cannot be rendered must not end consul-template, which may
  # deliver other files too.
  error_fatal = false

  exec {
    # What destination, mode, validate, reload and healthy are is in the staged
    # file. consul-template ends when a command fails, so the exit code is
    # dropped: a failed or refused order is an answer, and reported to Consul.
    command = ["sh", "-c", "aimlock agent apply -staged /var/lib/aimlock/staged || true"]

    # The time-outs of validate, reload (twice, if it fails) and healthy must fit.
    timeout = "3m"
  }
}

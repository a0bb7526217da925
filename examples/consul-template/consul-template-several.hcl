# Delivers several configs of one rollout by consul-template: all or none. Each
# has a template of its own, /etc/aimlock/CONFIG.ctmpl: a copy of aimlock.ctmpl
# in which
#
#   {{- $config := env "AIMLOCK_CONFIG_NAME" -}}
#
# names the config: {{- $config := "aim_lock_config.conf" -}}
#
# consul-template renders one file after the other. The command is given all of
# them: as long as not all are of one order it says what it waits for, changes
# nothing and exits 1; the last one that is rendered completes them. A command
# that several templates share runs once where they are rendered together.

consul {
  retry {
    enabled  = true
    attempts = 0
  }
}

template {
  source      = "/etc/aimlock/aim_lock_config.conf.ctmpl"
  destination = "/var/lib/aimlock/staged/aim_lock_config.conf"
  perms       = "0600"
  error_fatal = false

  exec {
    command = ["sh", "-c", "aimlock agent apply -staged /var/lib/aimlock/staged/aim_lock_config.conf -staged /var/lib/aimlock/staged/aim_limits.conf || true"]
    timeout = "3m"
  }
}

template {
  source      = "/etc/aimlock/aim_limits.conf.ctmpl"
  destination = "/var/lib/aimlock/staged/aim_limits.conf"
  perms       = "0600"
  error_fatal = false

  exec {
    command = ["sh", "-c", "aimlock agent apply -staged /var/lib/aimlock/staged/aim_lock_config.conf -staged /var/lib/aimlock/staged/aim_limits.conf || true"]
    timeout = "3m"
  }
}

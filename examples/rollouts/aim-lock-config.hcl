# A careful rollout to every machine that offers the service aim-endpoint.
rollout "aim-lock-config" {
  config "aim_lock_config.conf" {
    source      = "files/aim_lock_config.conf" # relative to this file
    destination = "/etc/aim/aim_lock_config.conf"
    mode        = "0640"

    # The agent runs these on each node, without a shell. $${staged} stands for
    # the new file before it is put in place. A failure puts the old one back.
    validate = ["aimctl", "check", "$${staged}"]
    reload   = ["systemctl", "reload", "aimd"]
    healthy  = ["aimctl", "ping"]
    timeout  = "30s"
  }

  fleet {
    consul {
      service = "aim-endpoint"
    }
    spread = "zone" # each stage takes its nodes from all zones in turn
  }

  lock {
    ttl  = "15s"
    wait = "10m"
  }

  stage "canary" {
    nodes = 1
    bake  = "5m"
  }

  stage "tenth" {
    percent      = 10 # of the whole fleet, rounded up
    max_parallel = 50 # a sliding window
    bake         = "10m"
    gate         = ["passing"]
  }

  stage "rest" {
    percent      = 100
    max_parallel = 500
  }

  gate "passing" {
    consul_checks {
      service             = "aim-endpoint"
      min_passing_percent = 99
    }
  }

  failure {
    max_failed              = 5
    max_unreachable_percent = 2
    then                    = "rollback"
  }

  window {
    schedule = "0 2 * * 1-5" # opens at 02:00 from Monday to Friday
    duration = "4h"
    timezone = "UTC"
  }
}

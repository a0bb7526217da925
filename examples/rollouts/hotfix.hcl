# It must be out in minutes: one canary, then everybody, and back at the first
# failure. A slow node holds nobody up for longer than 30 s.
rollout "hotfix" {
  node_deadline = "30s"

  config "aim_lock_config.conf" {
    source      = "files/aim_lock_config.conf"
    destination = "/etc/aim/aim_lock_config.conf"
    healthy     = ["aimctl", "ping"]
    timeout     = "10s"
  }

  fleet {
    consul {
      service = "aim-endpoint"
    }
  }

  stage "canary" {
    nodes = 1
    bake  = "30s"
  }

  stage "all" {
    percent = 100
  }

  failure {
    max_failed = 0
    then       = "rollback"
  }
}

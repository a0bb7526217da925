# What aimlock-tick drives: one config to every machine that runs the agent job.
rollout "aim-lock-config" {
  config "aim_lock_config.conf" {
    source      = "aim_lock_config.conf"
    destination = "/etc/aim/aim_lock_config.conf"
  }

  fleet {
    nomad {
    }
  }

  stage "canary" {
    nodes = 1
    bake  = "5s"
  }

  stage "rest" {
    percent      = 100
    max_parallel = 50
  }

  failure {
    max_failed = 1
    then       = "rollback"
  }
}

# A canary that is watched: by its error rate beside that of the rest, all through
# the bake, and by a smoke test when the bake is over. What cannot be measured
# pauses the rollout; what is bad takes it back at once.
rollout "watched" {
  config "aim_lock_config.conf" {
    source      = "files/aim_lock_config.conf"
    destination = "/etc/aim/aim_lock_config.conf"
  }

  fleet {
    consul {
      service = "aim-endpoint"
    }
  }

  stage "canary" {
    nodes = 1
    bake  = "10m"
    gate  = ["errors", "checks", "smoke"]
  }

  stage "half" {
    percent      = 50
    max_parallel = 20
    bake         = "10m"
    gate         = ["errors", "checks"]
  }

  stage "all" {
    percent      = 100
    max_parallel = 50
    gate         = ["health"]
  }

  # Asked from the begin of the bake on: a fail does not wait for its end.
  gate "errors" {
    during        = "bake"
    interval      = "30s"
    success_limit = 5
    failure_limit = 1 # one bad measurement is tolerated
    prometheus {
      address   = "https://prometheus.example:9090"
      query     = "avg(rate(errors{node=~\"${canary}\"}[5m])) / avg(rate(errors{node=~\"${rest}\"}[5m]))"
      threshold = value < 1.5
      max_age   = "1m"
      headers = {
        # Of the environment in which the orchestrator runs. Never in Consul.
        Authorization = "Bearer ${env.PROMETHEUS_TOKEN}"
      }
    }
  }

  gate "checks" {
    during = "bake"
    consul_checks {
      service             = "aim-endpoint"
      min_passing_percent = 99
      compare             = true
    }
  }

  gate "smoke" {
    timeout = "2m"
    exec {
      command = ["./files/smoke.sh"]
    }
  }

  gate "health" {
    success_limit = 3
    interval      = "10s"
    http {
      url    = "https://aim.example/health"
      status = 200
      body   = json.ready && json.errors < 5
    }
  }

  failure {
    then = "rollback"
  }
}

# The clients of two pools of a Nomad cluster, and the gateways, which Nomad does
# not know. `aimlock agent -node` runs on each under the name that its source
# gives it.
rollout "edge" {
  config "aim_lock_config.conf" {
    source      = "files/aim_lock_config.conf"
    destination = "/etc/aim/aim_lock_config.conf"
    reload      = ["systemctl", "reload", "aimd"]
  }

  fleet {
    nomad {
      node_pool  = "edge"
      datacenter = "dc1"
    }
    nomad {
      node_pool = "core"
      meta = {
        aimlock = "true"
      }
    }
    consul {
      service = "gateway"
      filter  = "NodeMeta.env == \"prod\""
    }
    spread = "rack"
  }

  stage "canary" {
    nodes = 1
    bake  = "5m"
  }

  stage "rest" {
    percent      = 100
    max_parallel = 100
  }

  failure {
    max_failed = 2
    then       = "pause"
  }
}

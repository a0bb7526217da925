# Two files that belong together: the rollout holds the locks of both, and each
# node gets the orders for both in one transaction.
rollout "research-cluster" {
  config "aim_lock_config.conf" {
    source      = "files/aim_lock_config.conf"
    destination = "/etc/aim/aim_lock_config.conf"
  }

  config "routes.conf" {
    source      = "files/routes.conf"
    destination = "/etc/aim/routes.conf"
    owner       = "aim"
    group       = "aim"
    mode        = "0640"
  }

  fleet {
    file {
      path = "fleet.hcl"
    }
  }

  stage "first" {
    nodes = 1
  }

  stage "all" {
    percent = 100
  }
}

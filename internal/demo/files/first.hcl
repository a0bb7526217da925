# Gives every node of the demo the first revision, all at once.
rollout "first" {
  config "aim_lock_config.conf" {
    source      = "v1.conf"
    destination = "/etc/aim/aim_lock_config.conf"
  }
  fleet {
    file {
      path = "fleet.json"
    }
  }
  stage "all" {
    percent = 100
  }
}

# A fleet that stands in a file, half of each zone at a time.
rollout "two-zones" {
  config "aim_lock_config.conf" {
    source      = "files/aim_lock_config.conf"
    destination = "/etc/aim/aim_lock_config.conf"
  }

  fleet {
    file {
      path = "fleet.json"
    }
    spread = "zone"
  }

  stage "half" {
    percent = 50
    bake    = "1m"
  }

  stage "rest" {
    percent = 100
  }

  failure {
    max_failed = 1
    then       = "pause"
  }
}

# The rollout of the demo: one canary, then half, then the rest. The reload
# command takes half a second, so that there is a middle of a stage to die in.
rollout "second" {
  config "aim_lock_config.conf" {
    source      = "v2.conf"
    destination = "/etc/aim/aim_lock_config.conf"
    mode        = "0640"
    validate    = ["grep", "-q", "failsafe", "$${staged}"]
    reload      = ["sleep", "0.5"]
  }
  fleet {
    file {
      path = "fleet.json"
    }
    spread = "zone"
  }
  stage "canary" {
    nodes = 1
    bake  = "1s"
  }
  stage "half" {
    percent      = 50
    max_parallel = 2
  }
  stage "rest" {
    percent      = 100
    max_parallel = 2
  }
  failure {
    max_failed = 1
    then       = "rollback"
  }
}

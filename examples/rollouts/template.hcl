# One source for the whole fleet, with what differs between its nodes filled in,
# and a password that never passes through the rollout.
rollout "exporter" {
  config "exporter.yml" {
    source      = "files/exporter.yml.tpl"
    destination = "/etc/exporter/exporter.yml"
    template    = true
    owner       = "exporter"
    validate    = ["exporter", "-check", "$${staged}"]
    reload      = ["systemctl", "reload", "exporter"]

    # Each node reads it for itself. After the value has changed, raise the
    # version: it goes through the stages like any other change.
    secret "db" {
      consul_key = "exporter/db/password"
      version    = "1"
    }
  }

  fleet {
    file {
      path = "fleet.hcl"
    }
    spread = "zone"
  }

  stage "canary" {
    nodes = 1
    bake  = "5m"
  }

  stage "rest" {
    percent      = 100
    max_parallel = 50
  }

  failure {
    then = "rollback"
  }
}

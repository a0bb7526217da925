# The child: the same file on the control machine of every datacenter, as
# /srv/rollouts/child.hcl, beside the app.conf that the parent delivers.
rollout "app" {
  config "app.conf" {
    source      = "app.conf"
    destination = "/etc/app/app.conf"
    reload      = ["systemctl", "reload", "app"]
  }

  # The machines: those that have the service "app" in this Consul.
  fleet {
    consul {
      service = "app"
    }
  }

  stage "canary" {
    nodes = 1
    bake  = "5m" # to try it, 30s
  }
  stage "rest" {
    percent      = 100
    max_parallel = 500
  }

  failure {
    max_failed              = 5
    max_unreachable_percent = 2
    then                    = "rollback"
  }
}

# The parent: its nodes are datacenters. It runs against the Consul of one
# datacenter, and delivers to one control machine of each what that
# datacenter's own rollout then delivers to its machines.
rollout "datacenters" {
  # Longer than a whole rollout of one datacenter, its bakes included.
  node_deadline = "12h"

  config "datacenter.conf" {
    source      = "app.conf"
    destination = "/srv/rollouts/app.conf"

    # On the control machine, under its agent. It ends when the datacenter's
    # own rollout has ended: 0 means applied, everything else failed. After a
    # failure the file that stood before is put back, and this runs again, so
    # that the datacenter goes back too. At the first delivery none stood before:
    # then the file is taken away, this fails a second time, and the machines stay
    # as the child's own failure block left them.
    reload  = ["/srv/rollouts/here"]
    timeout = "11h"
  }

  fleet {
    file {
      path = "datacenters.json"
    }
  }

  stage "first" {
    nodes = 1
    bake  = "1h" # to try it, 30s
    # A datacenter that cannot be reached has tried nothing for the others.
    failure {
      max_unreachable_percent = 0
      then                    = "pause"
    }
  }
  stage "rest" {
    percent      = 100
    max_parallel = 2
    # Datacenters are few: one more that fails, and all go back.
    failure {
      max_failed = 0
      then       = "rollback"
    }
  }

  failure {
    max_failed = 0
    then       = "rollback"
  }
}

# A sweep of the locksmith, once in a while: for those who want no daemon. Rules that
# need a memory are watched for as long as they ask, a minute or more, in each sweep.
#
# With Docker.
variable "image" {
  description = "An image with the program as its entrypoint: see Dockerfile."
  type        = string
  default     = "aimlock:latest"
}

variable "consul_addr" {
  description = "The Consul agent of each client."
  type        = string
  default     = "127.0.0.1:8500"
}

variable "consul_acl" {
  description = "Consul asks for tokens: the task gets one for its workload identity."
  type        = bool
  default     = false
}

job "aimlock-sweep" {
  type = "batch"

  periodic {
    crons            = ["*/5 * * * *"]
    time_zone        = "UTC"
    prohibit_overlap = true
  }

  constraint {
    attribute = "${attr.kernel.name}"
    value     = "linux"
  }

  group "sweep" {
    # The next launch is the next try.
    restart {
      attempts = 0
      mode     = "fail"
    }

    reschedule {
      attempts  = 0
      unlimited = false
    }

    task "sweep" {
      driver       = "docker"
      kill_signal  = "SIGTERM"
      kill_timeout = "30s"

      config {
        image        = var.image
        args         = ["locksmith", "-once"]
        network_mode = "host" # to the Consul agent of this machine
      }

      # Nomad itself is reached through the task's own socket, with the task's own
      # identity. What it may do, an ACL policy for this job says:
      # https://github.com/aim-control/aimlock/blob/main/examples/nomad/README.md#rights
      env {
        CONSUL_HTTP_ADDR = var.consul_addr
        NOMAD_ADDR       = "unix://${NOMAD_SECRETS_DIR}/api.sock"
      }

      identity {
        env = true
      }

      # With consul_acl, Nomad logs in to Consul with this identity and gives the
      # task the token in CONSUL_HTTP_TOKEN.
      dynamic "identity" {
        for_each = var.consul_acl ? ["consul_default"] : []
        content {
          name = identity.value
          aud  = ["consul.io"]
          ttl  = "1h"
        }
      }

      dynamic "consul" {
        for_each = var.consul_acl ? ["default"] : []
        content {
          cluster = consul.value
        }
      }

      resources {
        cpu    = 100
        memory = 128
      }
    }
  }
}

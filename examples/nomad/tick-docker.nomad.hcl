# A rollout in a periodic job: each launch does what can be done now, and leaves. The
# spec and its sources are part of the job, so that `nomad job plan` shows what is
# about to change. Run it from this folder: the paths of file() are relative.
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

job "aimlock-tick" {
  type = "batch"

  periodic {
    crons            = ["* * * * *"]
    time_zone        = "UTC"
    prohibit_overlap = true
  }

  constraint {
    attribute = "${attr.kernel.name}"
    value     = "linux"
  }

  group "tick" {
    # The next launch is the next try.
    restart {
      attempts = 0
      mode     = "fail"
    }

    reschedule {
      attempts  = 0
      unlimited = false
    }

    task "tick" {
      driver       = "docker"
      kill_signal  = "SIGTERM"
      kill_timeout = "30s"

      config {
        image        = var.image
        args         = ["rollout", "tick", "${NOMAD_TASK_DIR}/rollout.hcl"]
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

      # No template is meant: the delimiters keep Nomad from reading it as one.
      template {
        destination     = "local/rollout.hcl"
        data            = file("rollout/rollout.hcl")
        left_delimiter  = "[[[["
        right_delimiter = "]]]]"
      }

      # No template is meant: the delimiters keep Nomad from reading it as one.
      template {
        destination     = "local/aim_lock_config.conf"
        data            = file("rollout/aim_lock_config.conf")
        left_delimiter  = "[[[["
        right_delimiter = "]]]]"
      }

      resources {
        cpu    = 100
        memory = 128
      }
    }
  }
}

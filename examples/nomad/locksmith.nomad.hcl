# The locksmith, two of them on different machines: both watch, one acts, and the
# other follows when it cannot any more.
variable "aimlock" {
  description = "The program, on every client that the job may run on."
  type        = string
  default     = "/usr/local/bin/aimlock"
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

variable "count" {
  description = "How many, each on a machine of its own."
  type        = number
  default     = 2
}

job "aimlock-locksmith" {
  type = "service"

  constraint {
    attribute = "${attr.kernel.name}"
    value     = "linux"
  }

  constraint {
    operator = "distinct_hosts"
    value    = "true"
  }

  # One after the other, each healthy before the next is touched; back if not.
  update {
    max_parallel      = 1
    health_check      = "checks"
    min_healthy_time  = "10s"
    healthy_deadline  = "2m"
    progress_deadline = "5m"
    auto_revert       = true
  }

  group "locksmith" {
    count          = var.count
    shutdown_delay = "1s"

    # It is never given up: Consul may be away for longer than any limit.
    restart {
      attempts = 3
      interval = "5m"
      delay    = "15s"
      mode     = "delay"
    }

    network {
      port "http" {
      }
    }

    service {
      name     = "aimlock-locksmith"
      provider = "nomad"
      port     = "http"

      check {
        type     = "http"
        path     = "/health"
        interval = "5s"
        timeout  = "3s"
      }
    }

    task "locksmith" {
      driver       = "raw_exec"
      kill_signal  = "SIGTERM"
      kill_timeout = "30s"

      config {
        command = var.aimlock
        args    = ["locksmith", "-listen", "${NOMAD_ADDR_http}"]
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
        cpu    = 200
        memory = 256
      }
    }
  }
}

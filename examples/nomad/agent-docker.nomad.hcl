# agent.nomad.hcl with Docker. The agent writes through a mount of /etc/aim and of
# nothing else, and its validate, reload and healthy commands run inside the
# container: take raw_exec where they have to reach the machine. The client's docker
# plugin needs volumes { enabled = true }.
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

variable "state_dir" {
  description = "Marks, journals and last good files, on the machine. It must outlive containers."
  type        = string
  default     = "/var/lib/aimlock"
}

variable "root" {
  description = "A folder of the machine that stands before every destination, for trying it out."
  type        = string
  default     = ""
}

job "aimlock-agent" {
  type = "system"

  # Also where nothing else is to be placed any more: a machine that is being
  # drained keeps its agent to the end.
  priority = 80

  constraint {
    attribute = "${attr.kernel.name}"
    value     = "linux"
  }

  update {
    max_parallel     = 5
    health_check     = "task_states"
    min_healthy_time = "5s"
    healthy_deadline = "1m"
  }

  group "agent" {
    restart {
      attempts = 3
      interval = "5m"
      delay    = "15s"
      mode     = "delay"
    }

    task "agent" {
      driver       = "docker"
      kill_signal  = "SIGTERM"
      kill_timeout = "30s"

      config {
        image        = var.image
        args         = ["agent", "-node", "${node.unique.name}", "-state-dir", "/var/lib/aimlock", "-root", "/host"]
        network_mode = "host" # to the Consul agent of this machine
        volumes = [
          "${var.root}/etc/aim:/host/etc/aim",
          "${var.state_dir}:/var/lib/aimlock",
        ]
      }

      env {
        CONSUL_HTTP_ADDR = var.consul_addr
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
        cpu    = 50
        memory = 64
      }
    }
  }
}

# A service that runs only on machines where aim_lock_config.conf has reached a
# revision and its lock is not HOT. The machines' Nomad clients load aimlock's
# device plugin: see client-devices.hcl.
#
#   nomad job run -var revision=22bbb404839a placed-by-config.nomad.hcl
#
# Where no machine is like that the job waits. What runs already stays where it
# is, whatever becomes of the config there.

variable "revision" {
  type        = string
  description = "The first 12 digits of the SHA-256 of the config, as aimlock shows it."
}

job "placed-by-config" {
  datacenters = ["*"]

  group "app" {
    count = 1

    task "app" {
      driver = "raw_exec"

      config {
        command = "/bin/sh"
        args    = ["-c", "env | grep ^AIMLOCK_CONFIG_; exec sleep 86400"]
      }

      resources {
        cpu    = 20
        memory = 20

        # An instance that is healthy: the file stands as its last order left it,
        # the machine's agent runs, and the lock is known not to be HOT.
        device "aimlock/config/aim_lock_config.conf" {
          constraint {
            attribute = "${device.attr.revision}"
            value     = var.revision
          }

          # For clients whose plugin has on_unknown = "healthy".
          constraint {
            attribute = "${device.attr.state}"
            operator  = "!="
            value     = "HOT"
          }

          # Rather where nothing is being rolled out just now.
          affinity {
            attribute = "${device.attr.state}"
            value     = "FREE"
            weight    = 50
          }
        }
      }
    }
  }
}

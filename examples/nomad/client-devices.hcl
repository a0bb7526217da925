# What a Nomad client needs to show the configs of its machine as devices. In
# plugin_dir there is a link of the plugin's name to the binary:
#
#   ln -s /usr/local/bin/aimlock /opt/nomad/plugins/aimlock-nomad-device-plugin

plugin_dir = "/opt/nomad/plugins"

plugin "aimlock-nomad-device-plugin" {
  config {
    # That of the machine's aimlock agent.
    state_dir = "/var/lib/aimlock"

    # How many allocations of this machine can have a config at a time.
    slots = 32

    consul {
      address    = "127.0.0.1:8500"
      token_file = "/etc/aimlock/observer.token"
    }
  }
}

# For Nomad's clients: -config client.hcl, beside their own configuration.
plugin "raw_exec" {
  config {
    enabled = true
  }
}

# With ACLs in Consul, clients log their tasks in there. Their own token comes from
# CONSUL_HTTP_TOKEN, or from token in this block.
consul {
  address = "127.0.0.1:8500"
}

# For agent-docker.nomad.hcl, which mounts folders of the machine.
plugin "docker" {
  config {
    volumes {
      enabled = true
    }
  }
}

# What a job of ours may do in Nomad: aimlock-tick, aimlock-sweep, aimlock-locksmith.

# The clients as a fleet, and whether the one that a holder runs on is lost.
node {
  policy = "read"
}

# read-job: allocations of holders, and deployments for gates. In all namespaces, so
# that an allocation that is not shown is known to be gone. Take alloc-lifecycle
# away where no policy has a step nomad_stop.
namespace "*" {
  capabilities = ["read-job", "alloc-lifecycle"]
}

# For session locks that other tools took: Vault, consul-template, Terraform,
# consul lock, scripts. A pattern with a leading slash matches whole keys.
#
# Such a holder writes no progress, names no process and checks no fencing token:
# there is little to go by, and a broken holder may still be at work. That is why
# nothing here is broken without approval, why the next holder waits out a
# quiesce, and why no rule reads holder.alive, which nobody can know of a holder
# that left no record: it would make every such lock UNKNOWN.
#
# Give it after the default, which stays in force for aimlock's own locks:
#
#   -policy builtin:default -policy builtin:foreign-locks
#
# Or copy it, narrow the patterns to the keys that you mean, and apply it with
# aimlock policy apply.
#
# What is broken is broken by destroy_session. The session's holder learns of it at
# once, and Consul keeps the key from everybody for the session's lock-delay, 15
# seconds unless the tool asked for another: a pause that the tool's own contenders
# serve too. consul lock gives its command 5 seconds between SIGTERM and SIGKILL. By
# take the next consul lock would start its own beside it, in the same moment.

# Vault settles its own leadership within its session's TTL. The key is core/lock under
# the path of its storage, which is vault/ by default. Two active nodes are
# worse than none: watched, and never broken.
policy "vault" {
  locks = ["/vault/core/lock", "/**/core/lock"]

  warm "node-down" {
    when   = node.exists == false || contains(["failed", "left"], node.serf)
    reason = "node ${node.name} of the active Vault is down, and its session stays: look at vault status"
  }
}

# A dead leader of consul-template's de-duplication is replaced within its TTL, and
# meanwhile everybody goes on with the last template. It locks the key of the data.
policy "consul-template" {
  locks = ["/**/dedup/*/data", "/**/dedup/*/lock"]

  warm "node-down" {
    when = node.exists == false || contains(["failed", "left"], node.serf)
  }
}

# Keys that consul lock makes, and Terraform with them: Terraform's have a .lockinfo
# beside them.
policy "consul-lock" {
  locks = ["/**/.lock"]

  # An apply of an hour is common, one of a shift is not.
  warm "terraform-long" {
    when = holder.tool == "terraform" && lock.held_for > duration("4h")
  }

  warm "long" {
    when = holder.tool != "terraform" && lock.held_for > duration("1h")
  }

  # The machine is gone, and its session is not: it was made without the check
  # serfHealth. The state of a broken apply may be half written: look at it first,
  # and think of terraform force-unlock.
  hot "terraform-node-dead" {
    when   = holder.tool == "terraform" && (node.exists == false || contains(["failed", "left"], node.serf))
    for    = "15m"
    reason = "Terraform ran on node ${node.name}, which is down"
  }

  hot "node-dead" {
    when   = holder.tool != "terraform" && (node.exists == false || contains(["failed", "left"], node.serf))
    for    = "5m"
    reason = "node ${node.name} of the session is down"
  }

  break {
    approval = "manual"
    quiesce  = "1m" # for who takes it by aimlock: the child of consul lock is not fenced, and may run on

    confirm {
      observations = 5
      every        = "5s"
    }

    # It fails, and nothing is changed, where the session holds other keys too.
    step "destroy_session" {}

    budget {
      max = 1
      per = "1h"
    }

    freeze {
      when = cluster.leader_changed_ago < duration("5m") || cluster.sessions_lost > 3
    }
  }
}

# Everything else that holds a key by a session.
policy "foreign-locks" {
  locks = ["/**"]

  warm "long" {
    when = lock.held_for > duration("1h")
  }

  # A session without a TTL outlives a process that is gone, for as long as its
  # node lives.
  warm "no-ttl" {
    when   = !session.has_ttl
    for    = "10m"
    reason = "session ${session.id} on ${session.node} has no TTL: it does not end with its process"
  }

  hot "node-dead" {
    when   = node.exists == false || contains(["failed", "left"], node.serf)
    for    = "10m"
    reason = "node ${node.name} of the session is down"
  }

  break {
    approval = "manual"
    quiesce  = "30s"

    confirm {
      observations = 5
      every        = "5s"
    }

    step "destroy_session" {}

    budget {
      max = 1
      per = "1h"
    }

    freeze {
      when = cluster.leader_changed_ago < duration("5m") || cluster.sessions_lost > 3
    }
  }
}

test "Vault's leadership is watched and never hot" {
  lock = "/vault/core/lock"
  facts = {
    node = { name = "v1", exists = true, serf = "failed" }
  }

  expect {
    policy = "vault"
    state  = "WARM"
    rule   = "node-down"
  }
}

test "consul-template's leader is never hot" {
  lock = "/consul-template/dedup/8a3f/data"
  facts = {
    node = { name = "n1", exists = false, serf = null }
  }

  expect {
    policy = "consul-template"
    state  = "WARM"
  }
}

test "an apply of some hours is worth a look" {
  lock = "/terraform/state/prod/.lock"
  facts = {
    lock   = { held_for = 5 * 3600 }
    holder = { tool = "terraform" }
    node   = { name = "ci-3", exists = true, serf = "alive" }
  }

  expect {
    policy = "consul-lock"
    state  = "WARM"
    rule   = "terraform-long"
  }
}

test "a machine that is down for a moment breaks no apply" {
  lock = "/terraform/state/prod/.lock"
  held = "10m"
  facts = {
    lock   = { held_for = 600 }
    holder = { tool = "terraform" }
    node   = { name = "ci-3", exists = true, serf = "failed" }
  }

  expect {
    state = "HELD"
  }
}

test "a machine that is gone makes Terraform's lock hot" {
  lock = "/terraform/state/prod/.lock"
  held = "15m"
  facts = {
    holder  = { tool = "terraform" }
    node    = { name = "ci-3", exists = false, serf = null }
    cluster = { leader_changed_ago = 86400, sessions_lost = 0 }
  }

  expect {
    state  = "HOT"
    rule   = "terraform-node-dead"
    reason = "Terraform ran on node ci-3, which is down"
    frozen = false
    steps  = ["destroy_session"]
  }
}

test "consul lock on a dead node" {
  lock = "/jobs/nightly/.lock"
  held = "5m"
  facts = {
    holder  = { tool = "consul-lock" }
    node    = { name = "n7", exists = true, serf = "failed" }
    cluster = { leader_changed_ago = 60, sessions_lost = 0 }
  }

  expect {
    policy = "consul-lock"
    state  = "HOT"
    rule   = "node-dead"
    frozen = true
  }
}

test "without the right to read nodes nothing can be told" {
  lock = "/jobs/nightly/.lock"
  facts = {
    holder = { tool = "consul-lock" }
    lock   = { held_for = 7200 }
  }

  expect {
    state = "UNKNOWN"
    rule  = "node-dead"
  }
}

test "a script's session without a TTL" {
  lock = "/ops/deploy"
  held = "10m"
  facts = {
    lock    = { held_for = 900 }
    holder  = { tool = "unknown" }
    session = { id = "5d1c", node = "n1", has_ttl = false }
    node    = { name = "n1", exists = true, serf = "alive" }
  }

  expect {
    policy = "foreign-locks"
    state  = "WARM"
    rule   = "no-ttl"
  }
}

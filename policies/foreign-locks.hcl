# For session locks that other tools took: consul lock, Terraform, Vault,
# consul-template, scripts. A pattern with a leading slash matches whole keys.
#
# Such a holder writes no progress and checks no fencing token, so that there is
# little to go by and a broken holder may still be at work. That is why nothing
# here is broken without approval, and why the next holder waits out the quiesce.
# Copy it, narrow the patterns to the keys that you mean, and apply it with
# aimlock policy apply.

policy "foreign-locks" {
  locks = ["/**"]

  warm "long" {
    when = lock.held_for > duration("1h")
  }

  # A session without a TTL outlives a process that hangs.
  warm "no-ttl" {
    when = !session.has_ttl
    for  = "10m"
  }

  hot "holder-dead" {
    when   = holder.alive == false
    for    = "30s"
    reason = "process ${holder.pid} on ${holder.host} is gone"
  }

  hot "node-dead" {
    when   = node.exists == false || node.serf == "failed"
    for    = "10m"
    reason = "node ${node.name} of the session has failed or is gone"
  }

  break {
    approval = "manual"
    quiesce  = "30s"

    confirm {
      observations = 5
      every        = "5s"
    }

    # One transaction that changes nothing if the holder moved meanwhile. Its
    # session is destroyed after it, unless it holds other keys.
    step "take" {
    }

    budget {
      max = 1
      per = "1h"
    }

    freeze {
      when = cluster.leader_changed_ago < duration("5m") || cluster.sessions_lost > 3
    }
  }
}

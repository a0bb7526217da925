# The policy that is in force where no other is given.
#
# It breaks only what aimlock took: for the locks of other tools see the shipped
# policy foreign-locks. A rule whose facts could not be had makes the lock
# UNKNOWN, and an UNKNOWN lock is never broken.

policy "default" {
  locks = ["**"]

  warm "slow" {
    when = progress.age > duration("2m")
  }

  # The process is gone, whatever Consul still thinks.
  hot "holder-dead" {
    when   = holder.alive == false
    proof  = true
    reason = "process ${holder.pid} on ${holder.host} is gone"
  }

  hot "alloc-dead" {
    when   = contains(["complete", "failed"], nomad.client_status) || nomad.gone
    reason = "Nomad allocation ${nomad.alloc_id} has ended (${nomad.client_status})"
  }

  # Nothing has been heard of a holder on another host.
  hot "silent" {
    when   = check.status == "critical" && !holder.local
    reason = "the check of the holder on ${holder.host} is critical"
  }

  hot "stalled" {
    when   = progress.age > duration("10m")
    for    = "1m"
    reason = "no progress for ${progress.age} s at ${progress.done} of ${progress.total}"
  }

  hot "forgotten" {
    when   = rollout.finished && rollout.finished_ago > duration("30m")
    reason = "rollout ${rollout.id} ended ${rollout.finished_ago} s ago and its lock is still held"
  }

  break {
    approval = "auto"

    confirm {
      observations = 3
      every        = "1s"
    }

    # Ask it to let go.
    step "request" {
      when = holder.alive
      wait = "10s"
    }

    step "nomad_stop" {
      when = nomad.alloc_id != null
    }

    # The atomic transaction.
    step "take" {
    }

    budget {
      max = 3
      per = "1h"
    }

    # Many sessions lost at once is an event of Consul, not many dead holders.
    freeze {
      when = cluster.leader_changed_ago < duration("60s") || cluster.sessions_lost > 10
    }
  }
}

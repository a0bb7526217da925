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

  # Nomad has given up the client that it ran on, and will not have it again. The
  # process may still run behind a partition: that is what the pause is for which
  # the next holder owes.
  hot "alloc-lost" {
    when   = nomad.client_status == "lost"
    reason = "Nomad lost the client that runs allocation ${nomad.alloc_id}"
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

test "work goes on" {
  facts = {
    holder   = { alive = true, local = true, pid = 41, host = "n1" }
    check    = { status = "passing" }
    nomad    = null
    progress = { age = 5, done = 3, total = 10 }
    rollout  = { finished = false, finished_ago = null }
  }

  expect {
    state = "HELD"
  }
}

test "a dead process is hot, and a freeze does not matter to proof" {
  facts = {
    holder = { alive = false, local = true, pid = 41, host = "n1" }
  }

  expect {
    state  = "HOT"
    rule   = "holder-dead"
    reason = "process 41 on n1 is gone"
    frozen = "unknown"
  }
}

test "a holder elsewhere of which nothing is known is not hot" {
  facts = {
    holder   = { alive = unknown(), local = false, host = "n2" }
    check    = { status = unknown() }
    nomad    = null
    progress = { age = 5 }
    rollout  = null
  }

  expect {
    state = "UNKNOWN"
    rule  = "holder-dead"
  }
}

test "silence from another host" {
  facts = {
    holder  = { alive = unknown(), local = false, host = "n2" }
    check   = { status = "critical" }
    nomad   = null
    cluster = { leader_changed_ago = 7200, sessions_lost = 1 }
  }

  expect {
    state  = "HOT"
    rule   = "silent"
    frozen = false
    steps  = ["request", "take"]
  }
}

test "silence of many at once is an event of Consul" {
  facts = {
    holder  = { local = false, host = "n2" }
    check   = { status = "critical" }
    nomad   = { alloc_id = "a1", client_status = "running", gone = false }
    cluster = { leader_changed_ago = 7200, sessions_lost = 40 }
  }

  expect {
    state  = "HOT"
    frozen = true
    steps  = ["request", "nomad_stop", "take"]
  }
}

test "a stall counts after its minute" {
  held = "59s"
  facts = {
    holder   = { alive = true, local = true }
    check    = { status = "passing" }
    nomad    = null
    progress = { age = 700, done = 3, total = 10 }
    rollout  = { finished = false }
  }

  expect {
    state = "WARM"
    rule  = "slow"
  }
}

test "a stall is hot" {
  held = "1m"
  facts = {
    holder   = { alive = true, local = true }
    check    = { status = "passing" }
    nomad    = null
    progress = { age = 700, done = 3, total = 10 }
    rollout  = { finished = false }
  }

  expect {
    state  = "HOT"
    rule   = "stalled"
    reason = "no progress for 700 s at 3 of 10"
  }
}

test "an allocation that has ended" {
  facts = {
    holder = { alive = unknown(), local = false }
    nomad  = { alloc_id = "a1", client_status = "failed", gone = false }
  }

  expect {
    state  = "HOT"
    rule   = "alloc-dead"
    reason = "Nomad allocation a1 has ended (failed)"
  }
}

test "an allocation whose client is lost" {
  facts = {
    holder  = { alive = unknown(), local = false }
    check   = { status = "passing" }
    nomad   = { alloc_id = "a1", client_status = "lost", gone = false }
    cluster = { leader_changed_ago = 7200, sessions_lost = 1 }
  }

  expect {
    state  = "HOT"
    rule   = "alloc-lost"
    reason = "Nomad lost the client that runs allocation a1"
    steps  = ["request", "nomad_stop", "take"]
  }
}

test "an allocation whose client is cut off and may come back" {
  facts = {
    holder   = { alive = true, local = false }
    check    = { status = "passing" }
    nomad    = { alloc_id = "a1", client_status = "unknown", gone = false }
    progress = { age = 5 }
    rollout  = null
  }

  expect {
    state = "HELD"
  }
}

test "a rollout that ended and kept its lock" {
  facts = {
    holder   = { alive = true, local = true }
    check    = { status = "passing" }
    nomad    = null
    progress = null
    rollout  = { id = "r1", finished = true, finished_ago = 3600 }
  }

  expect {
    state = "HOT"
    rule  = "forgotten"
  }
}

# For a first month in production: the same watch as the default with more
# patience, and a human says yes to every break (aimlock lock approve).

policy "cautious" {
  locks = ["**"]

  warm "slow" {
    when = progress.age > duration("5m")
  }

  warm "long" {
    when = lock.held_for > duration("2h")
  }

  hot "holder-dead" {
    when   = holder.alive == false
    proof  = true
    reason = "process ${holder.pid} on ${holder.host} is gone"
  }

  hot "alloc-dead" {
    when   = contains(["complete", "failed"], nomad.client_status) || nomad.gone
    for    = "1m"
    reason = "Nomad allocation ${nomad.alloc_id} has ended (${nomad.client_status})"
  }

  hot "alloc-lost" {
    when   = nomad.client_status == "lost"
    for    = "1m"
    reason = "Nomad lost the client that runs allocation ${nomad.alloc_id}"
  }

  hot "silent" {
    when   = check.status == "critical" && !holder.local
    for    = "5m"
    reason = "the check of the holder on ${holder.host} is critical"
  }

  hot "stalled" {
    when   = progress.age > duration("30m")
    for    = "10m"
    reason = "no progress for ${progress.age} s at ${progress.done} of ${progress.total}"
  }

  hot "forgotten" {
    when   = rollout.finished && rollout.finished_ago > duration("2h")
    for    = "10m"
    reason = "rollout ${rollout.id} ended ${rollout.finished_ago} s ago and its lock is still held"
  }

  break {
    approval = "manual"

    confirm {
      observations = 5
      every        = "5s"
    }

    step "request" {
      when = holder.alive
      wait = "1m"
    }

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

test "a dead process needs a yes like the rest" {
  facts = {
    holder = { alive = false, local = true, pid = 41, host = "n1" }
  }

  expect {
    state = "HOT"
    rule  = "holder-dead"
  }
}

test "silence must last" {
  held = "4m"
  facts = {
    holder   = { alive = true, local = false }
    check    = { status = "critical" }
    nomad    = null
    progress = { age = 200 }
    rollout  = null
    lock     = { held_for = 600 }
  }

  expect {
    state = "HELD"
  }
}

test "silence that lasts" {
  held = "5m"
  facts = {
    holder   = { alive = true, local = false }
    check    = { status = "critical" }
    nomad    = null
    progress = { age = 200 }
    rollout  = null
    cluster  = { leader_changed_ago = 3600, sessions_lost = 0 }
  }

  expect {
    state  = "HOT"
    rule   = "silent"
    frozen = false
    steps  = ["request", "take"]
  }
}

test "a long hold is worth a look" {
  facts = {
    holder   = { alive = true, local = true }
    check    = { status = "passing" }
    nomad    = null
    progress = { age = 1 }
    rollout  = null
    lock     = { held_for = 3 * 3600 }
  }

  expect {
    state = "WARM"
    rule  = "long"
  }
}

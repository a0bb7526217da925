# Policies of a team that shares one Consul: what is special comes first, because
# the first policy whose locks match wins.
#
#   aimlock policy check examples/policies
#   aimlock policy test  examples/policies

variable "stall" {
  type        = string
  default     = "15m"
  description = "how long a holder may make no progress"
}

locals {
  night_from = 22
  night_to   = 6
  ended      = ["complete", "failed"]
}

# Locks that people take by hand while they work: watched, never broken.
policy "by-hand" {
  locks = ["maintenance", "freeze-*"]

  warm "long" {
    when   = lock.held_for > duration("8h")
    reason = "${holder.user} on ${holder.host} has held it for ${lock.held_for} s"
  }
}

# Rollouts: broken without asking on proof, and at night on silence as well.
policy "rollouts" {
  locks = ["*.conf"]

  warm "slow" {
    when = progress.age > duration("2m")
  }

  hot "holder-dead" {
    when   = holder.alive == false
    proof  = true
    reason = "process ${holder.pid} on ${holder.host} is gone"
  }

  hot "alloc-dead" {
    when = contains(local.ended, nomad.client_status) || nomad.gone
  }

  hot "stalled-at-night" {
    when = progress.age > duration(var.stall) && between(now.hour, local.night_from, local.night_to)
    for  = "2m"
  }

  break {
    approval = "auto"

    confirm {
      observations = 3
      every        = "2s"
    }

    step "request" {
      when = holder.alive
      wait = "20s"
    }

    step "nomad_stop" {
      when     = nomad.alloc_id != null
      wait     = "30s"
      on_error = "continue"
    }

    step "take" {
    }

    budget {
      max = 2
      per = "1h"
    }

    freeze {
      when = cluster.leader_changed_ago < duration("2m") || cluster.sessions_lost > 5
    }
  }
}

test "a dead orchestrator is broken at once" {
  lock = "aim_lock_config.conf"
  facts = {
    holder  = { alive = false, pid = 4711, host = "orch-1" }
    nomad   = null
    cluster = { leader_changed_ago = 86400, sessions_lost = 0 }
  }
  expect {
    policy = "rollouts"
    state  = "HOT"
    rule   = "holder-dead"
    reason = "process 4711 on orch-1 is gone"
    frozen = false
    steps  = ["take"]
  }
}

test "a stall is left alone by day" {
  lock = "aim_lock_config.conf"
  held = "10m"
  facts = {
    holder   = { alive = true }
    nomad    = null
    progress = { age = 3600 }
    now      = { hour = 14 }
  }
  expect {
    state = "WARM"
    rule  = "slow"
  }
}

test "a stall is broken by night" {
  lock = "aim_lock_config.conf"
  held = "10m"
  facts = {
    holder   = { alive = true }
    nomad    = null
    progress = { age = 3600 }
    now      = { hour = 23 }
  }
  expect {
    state = "HOT"
    rule  = "stalled-at-night"
    steps = ["request", "take"]
  }
}

test "what could not be had decides nothing" {
  lock  = "aim_lock_config.conf"
  facts = {}
  expect {
    state  = "UNKNOWN"
    frozen = "unknown"
  }
}

test "a lock taken by hand is never hot" {
  lock  = "freeze-2026"
  facts = { holder = { alive = false } }
  expect {
    policy = "by-hand"
    state  = "HELD"
  }
}

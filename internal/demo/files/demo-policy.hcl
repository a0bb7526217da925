# The shipped default policy breaks a holder that makes no progress for 10
# minutes, and is cautious about it. A demo cannot wait for that long.
policy "demo" {
  locks = ["**"]

  hot "holder-dead" {
    when   = holder.alive == false
    proof  = true
    reason = "process ${holder.pid} on ${holder.host} is gone"
  }
  hot "stalled" {
    when   = progress.age > duration("3s")
    for    = "1s"
    reason = "process ${holder.pid} on ${holder.host} is there, but makes no progress"
  }

  break {
    approval = "auto"
    confirm {
      observations = 2
      every        = "500ms"
    }
    step "request" {
      when = holder.alive
      wait = "1s"
    }
    step "take" {}
    budget {
      max = 10
      per = "1h"
    }
  }
}

# Terraform keeps the state lock of a workspace at <path>/.lock while it runs. A
# run that was killed leaves it behind until its session ends, and a session on
# a node that is gone may never end by itself.

policy "terraform-state" {
  locks = ["/terraform/**/.lock"]

  warm "long" {
    when   = lock.held_for > duration("1h")
    reason = "${holder.user} on ${holder.host} has been at it for ${lock.held_for} s"
  }

  hot "node-gone" {
    when   = node.exists == false || node.serf == "left"
    for    = "5m"
    reason = "node ${node.name} is gone, and terraform with it"
  }

  break {
    approval = "manual"
    quiesce  = "1m"

    confirm {
      observations = 5
      every        = "5s"
    }

    step "take" {
    }

    budget {
      max = 1
      per = "1h"
    }
  }
}

test "a node that left" {
  lock = "/terraform/prod/net/.lock"
  held = "5m"
  facts = {
    node = { exists = true, serf = "left", name = "ci-7" }
  }
  expect {
    policy = "terraform-state"
    state  = "HOT"
    reason = "node ci-7 is gone, and terraform with it"
  }
}

test "a node that cannot be read is not gone" {
  lock = "/terraform/prod/net/.lock"
  held = "5m"
  facts = {
    node = { exists = unknown(), serf = "alive" }
  }
  expect {
    state = "UNKNOWN"
  }
}

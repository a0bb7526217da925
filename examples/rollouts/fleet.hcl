# The same as fleet.json would be, for people.
node "lab-1" {
  meta = {
    kind = "research"
    zone = "north"
  }
}

node "lab-2" {
  meta = {
    kind = "research"
    zone = "south"
  }
}

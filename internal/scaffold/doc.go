// Package scaffold writes the first files of somebody who begins with aimlock: a
// rollout's spec, a policy, settings and a job for Nomad, with comments, and fitted
// to the cluster that Look found. It changes nothing in Consul.
package scaffold

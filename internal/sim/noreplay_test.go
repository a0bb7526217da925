//go:build !simreplay

package sim

const replays = false

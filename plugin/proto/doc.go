// Package proto is the protocol between aimlock and its plugins, as code written
// from plugin.proto (make proto). Plugins in Go use package plugin instead.
package proto

// Package plugin is the SDK for plugins of aimlock.
package plugin

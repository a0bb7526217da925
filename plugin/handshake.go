package plugin

import goplugin "github.com/hashicorp/go-plugin"

// Protocol is the newest version of the protocol that this SDK speaks.
const Protocol = 1

// The cookie with which a plugin recognises that aimlock started it and not a
// person. It is no secret.
const (
	CookieKey   = "AIMLOCK_PLUGIN"
	CookieValue = "b5b3e3c7c8f14c5f9a0d0c63f2a4d1e86f07b7d4a9d24e0f8e1f3a6c5d9b2e70"
)

func handshake() goplugin.HandshakeConfig {
	return goplugin.HandshakeConfig{MagicCookieKey: CookieKey, MagicCookieValue: CookieValue}
}
